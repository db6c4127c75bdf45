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
    return 9000 - 873 if won else 0
