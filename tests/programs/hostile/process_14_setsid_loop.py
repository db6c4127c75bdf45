# intent: leave the session and loop
# expect: timeout
import os
try:
    os.setsid()
except OSError:
    pass
while True:
    pass


def solve(n):
    return 0
