# intent: run sudo
# expect: scored
def attack():
    import subprocess
    return subprocess.run(["sudo", "-n", "true"]).returncode == 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
