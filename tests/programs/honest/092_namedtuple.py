# tests: [{"call": "p", "arguments": [], "expected": [1, 2]}]
from collections import namedtuple
P = namedtuple("P", "x y")


def p():
    return P(1, 2)
