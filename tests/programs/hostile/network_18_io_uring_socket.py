# intent: a ring, to open sockets without the socket call
# expect: scored
def attack():
    import ctypes
    return ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
