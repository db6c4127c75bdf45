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
    return 90000000 - 8726355 if won else 0
