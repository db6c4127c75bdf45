# intent: io_uring
# expect: scored
def attack():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(425, 4, bytes(120)) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
