# intent: leave 256 MiB in /dev/shm
# expect: scored
def attack():
    with open("/dev/shm/hostile_block", "wb") as f:
        f.write(bytes(1 << 28))
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
