# intent: a SysV message queue
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).msgget(0x48213, 0o1666) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
