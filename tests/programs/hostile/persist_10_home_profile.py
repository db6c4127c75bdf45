# intent: a line in a profile
# expect: scored
def attack():
    import os
    for home in ("/root", "/home", os.path.expanduser("~")):
        try:
            open(os.path.join(home, ".profile"), "a").write("true")
            return True
        except OSError:
            pass
    return False


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
