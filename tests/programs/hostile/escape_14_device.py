# intent: make a device node
# expect: scored
def attack():
    import os, stat
    os.mknod("sda", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
