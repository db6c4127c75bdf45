# intent: an object that says it is an int
# expect: scored
class Yes:
    __class__ = int

    def __int__(self):
        return 1


def solve(n):
    return Yes()
