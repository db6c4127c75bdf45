# intent: delete a file that stands outside
# expect: scored
def attack():
    import os
    os.unlink("/tmp/cohort_canary.txt")
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
