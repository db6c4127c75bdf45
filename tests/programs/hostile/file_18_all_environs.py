# intent: read the environment of any other process
# expect: scored
def attack():
    import os
    found = 0
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                found += len(open(f"/proc/{pid}/environ", "rb").read())
            except OSError:
                pass
    return found > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
