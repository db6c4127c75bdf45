# intent: connect to a Unix socket
# expect: scored
def attack():
    import socket
    s = socket.socket(socket.AF_UNIX)
    s.connect("/tmp/cohort_canary.sock")
    return s.send(b"hit") > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
