# intent: a pool of workers
# expect: scored
def attack():
    import multiprocessing
    with multiprocessing.Pool(2) as pool:
        return pool.map(abs, [-1]) == [1]


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
