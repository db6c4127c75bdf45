# intent: a POSIX message queue
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).syscall(240, b"hostile", 0o102, 0o666, None) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
