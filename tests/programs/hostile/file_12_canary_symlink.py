# intent: read a file that stands outside through a symbolic link
# expect: scored
def attack():
    import os
    os.symlink("/tmp/cohort_canary.txt", "mine")
    return len(open("mine").read()) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
