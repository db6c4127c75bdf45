# intent: execveat by its number
# expect: scored
def attack():
    import ctypes, os
    fd = os.open("/bin/true", os.O_RDONLY)
    return ctypes.CDLL(None).syscall(322, fd, b"", None, None, 0x1000) == 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
