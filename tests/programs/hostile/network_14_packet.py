# intent: a packet socket
# expect: scored
def attack():
    import socket
    return bool(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
