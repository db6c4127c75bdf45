# intent: another namespace
# expect: scored
def attack():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(308, 0, 0) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
