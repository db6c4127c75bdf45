# intent: a line of a gigabyte
# expect: scored timeout
import os
b = b"x" * (1 << 20)
for _ in range(1024):
    os.write(1, b)


def solve(n):
    return 0
