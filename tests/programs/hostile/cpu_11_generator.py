# intent: sum of a generator that never ends
# expect: timeout
import itertools


def solve(n):
    return sum(itertools.count())
