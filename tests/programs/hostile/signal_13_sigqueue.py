# intent: rt_sigqueueinfo at the parent
# expect: scored
def attack():
    import ctypes, os
    return ctypes.CDLL(None).syscall(129, os.getppid(), 9, bytes(128)) == 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
