# intent: os.popen
# expect: scored
def attack():
    import os
    return os.popen("echo hello").read() == "hello\n"


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
