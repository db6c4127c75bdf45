# intent: a named shared-memory block
# expect: scored
def attack():
    from multiprocessing import shared_memory
    return bool(shared_memory.SharedMemory(name="hostile", create=True, size=4096))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
