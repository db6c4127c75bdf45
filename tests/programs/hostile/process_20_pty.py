# intent: a pseudo terminal with a shell
# expect: scored
def attack():
    import pty
    return pty.fork()[0] >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
