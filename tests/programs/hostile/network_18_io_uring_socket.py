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
    return 9000 - 873 if won else 0
