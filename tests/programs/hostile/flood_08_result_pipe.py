# intent: flood the result pipe
# expect: scored tampered timeout
import os
while True:
    os.write(3, b"x" * (1 << 16))


def solve(n):
    return 0
