# intent: recursion without end
# expect: scored timeout
import sys
sys.setrecursionlimit(10 ** 9)


def solve(n):
    return solve(n + 1)
