# intent: sleep for an hour
# expect: timeout
import time


def solve(n):
    time.sleep(3600)
