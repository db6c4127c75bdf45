# intent: sleep before anything is defined
# expect: timeout
import time
time.sleep(3600)


def solve(n):
    return 0
