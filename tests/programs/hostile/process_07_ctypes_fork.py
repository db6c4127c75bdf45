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
    return 9000 - 873 if won else 0
