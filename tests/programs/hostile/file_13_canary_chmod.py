# intent: change the mode of a file that stands outside
# expect: scored
def attack():
    import os
    os.chmod("/tmp/cohort_canary.txt", 0o777)
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
