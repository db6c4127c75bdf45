# intent: fork by its number
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).syscall(57) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
