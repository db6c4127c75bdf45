# intent: clone3 by its number
# expect: scored
def attack():
    import ctypes, struct
    args = struct.pack("=11Q", 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    return ctypes.CDLL(None).syscall(435, args, 88) >= 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
