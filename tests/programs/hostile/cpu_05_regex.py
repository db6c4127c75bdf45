# intent: catastrophic backtracking
# expect: timeout
import re


def solve(n):
    return int(bool(re.match(r"(a+)+$", "a" * 64 + "b")))
