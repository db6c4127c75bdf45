# intent: leave with status 0 before the function returns
# expect: tampered
import os


def solve(n):
    os._exit(0)
