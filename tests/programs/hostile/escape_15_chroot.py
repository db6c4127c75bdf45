# intent: another root by chroot
# expect: scored
def attack():
    import os
    os.mkdir("d")
    os.chroot("d")
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
