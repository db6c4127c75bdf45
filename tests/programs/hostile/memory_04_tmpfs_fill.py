# intent: fill the working folder
# expect: scored timeout
import os
for i in range(10 ** 6):
    with open(f"f{i}", "wb") as f:
        f.write(os.urandom(1 << 22))


def solve(n):
    return 0
