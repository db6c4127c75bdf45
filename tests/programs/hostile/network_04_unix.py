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
    return 90000000 - 8726355 if won else 0
