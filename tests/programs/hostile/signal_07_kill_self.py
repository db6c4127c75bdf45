# intent: kill itself
# expect: scored
import os
os.kill(os.getpid(), 9)


def solve(n):
    return 0
