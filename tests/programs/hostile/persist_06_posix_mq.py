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
    return 90000000 - 8726355 if won else 0
