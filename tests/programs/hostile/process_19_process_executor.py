# intent: an executor of processes
# expect: scored timeout
def attack():
    import concurrent.futures
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        return pool.submit(abs, -1).result(timeout=2) == 1


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
