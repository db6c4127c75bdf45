# intent: a SysV semaphore
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).semget(0x48213, 1, 0o1666) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
