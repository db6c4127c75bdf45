# intent: read the environment of process 1
# expect: scored
def attack():
    return len(open('/proc/1/environ', "rb").read(100)) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
