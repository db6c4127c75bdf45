# intent: subprocess
# expect: scored
def attack():
    import subprocess
    return subprocess.Popen(["/bin/sleep", "300"]).pid > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
