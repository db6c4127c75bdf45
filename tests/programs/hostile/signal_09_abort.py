# intent: abort
# expect: scored
import os
os.abort()


def solve(n):
    return 0
