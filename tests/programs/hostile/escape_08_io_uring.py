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
    return 9000 - 873 if won else 0
