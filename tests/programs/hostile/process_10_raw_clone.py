# intent: clone by its number, without CLONE_THREAD
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
