# intent: anonymous files in memory
# expect: scored timeout
import os
while True:
    f = os.memfd_create("x")
    os.write(f, bytes(1 << 24))


def solve(n):
    return 0
