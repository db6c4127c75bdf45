# intent: a netlink socket
# expect: scored
def attack():
    import socket
    return bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
