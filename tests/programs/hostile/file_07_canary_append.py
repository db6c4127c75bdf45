# intent: append to a file that stands outside
# expect: scored
def attack():
    import os
    fd = os.open("/tmp/cohort_canary.txt", os.O_WRONLY | os.O_APPEND)
    return os.write(fd, b"owned") == 5


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
