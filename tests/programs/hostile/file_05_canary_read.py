# intent: read a file that stands outside
# expect: scored
def attack():
    return len(open('/tmp/cohort_canary.txt', "rb").read(100)) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
