# intent: zombies by the thousand
# expect: scored
def attack():
    import os
    for _ in range(1000):
        if os.fork() == 0:
            os._exit(0)
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
