# intent: a pidfd signal at the parent
# expect: scored
def attack():
    import os, signal
    fd = os.pidfd_open(os.getppid())
    signal.pidfd_send_signal(fd, 9)
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
