# intent: write beside the working folder
# expect: scored
def attack():
    import os
    open("../hostile_marker", "w").write("x")
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
