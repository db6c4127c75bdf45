# intent: fork for ever
# expect: timeout
import os
while True:
    try:
        os.fork()
    except OSError:
        pass


def solve(n):
    return 0
