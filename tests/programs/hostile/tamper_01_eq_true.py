# intent: an object that equals everything
# expect: scored
def attack():
    class Yes:
        def __eq__(self, other):
            return True
        __hash__ = None
    globals()["solve"] = None
    raise SystemExit


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
