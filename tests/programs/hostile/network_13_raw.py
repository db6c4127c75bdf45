# intent: a raw socket
# expect: scored
def attack():
    import socket
    return bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
