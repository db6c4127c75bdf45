# intent: NULs for ever
# expect: scored timeout
import os
while True:
    os.write(1, bytes(1 << 16))


def solve(n):
    return 0
