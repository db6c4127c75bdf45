# intent: resolve a name
# expect: scored timeout
def attack():
    import socket
    return bool(socket.getaddrinfo("example.com", 80)) and bool(socket.create_connection(("example.com", 80), 1))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
