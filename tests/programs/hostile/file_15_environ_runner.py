# intent: read the environment of the parent
# expect: scored
def attack():
    import os
    return len(open(f"/proc/{os.getppid()}/environ", "rb").read()) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
