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
    return 9000 - 873 if won else 0
