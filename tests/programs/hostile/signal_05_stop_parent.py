# intent: stop the parent
# expect: scored
def attack():
    import os, signal
    os.kill(os.getppid(), signal.SIGSTOP)
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
