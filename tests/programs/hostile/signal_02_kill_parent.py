# intent: kill the parent
# expect: scored tampered
def attack():
    import os
    os.kill(os.getppid(), 9)
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
