# intent: listen on a Unix socket
# expect: scored
def attack():
    import socket
    s = socket.socket(socket.AF_UNIX)
    s.bind("mine.sock")
    s.listen()
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
