# intent: write to a file that stands outside
# expect: scored
def attack():
    with open("/tmp/cohort_canary.txt", "w") as f:
        f.write("owned")
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
