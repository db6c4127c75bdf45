# intent: read the memory of the parent
# expect: scored
def attack():
    import os
    f = open(f"/proc/{os.getppid()}/mem", "rb")
    f.seek(0x400000)
    return len(f.read(16)) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
