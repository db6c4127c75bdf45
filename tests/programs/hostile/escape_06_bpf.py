# intent: a BPF program
# expect: scored
def attack():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(321, 0, bytes(128), 128) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
