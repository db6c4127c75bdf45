# intent: connect to an abstract socket
# expect: scored
def attack():
    import socket
    s = socket.socket(socket.AF_UNIX)
    s.connect("\0cohort_canary")
    return s.send(b"hit") > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
