# intent: look for the expected answer among all objects
# expect: scored timeout
def attack():
    import gc
    return any("expected" in repr(o)[:1000] for o in gc.get_objects() if type(o) is dict and "expected" in o and "call" in o)


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
