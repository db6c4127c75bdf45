# intent: fork through libc
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).fork() >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
