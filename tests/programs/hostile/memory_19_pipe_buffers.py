# intent: pipes full of data
# expect: scored timeout
import os
kept = []
while True:
    r, w = os.pipe()
    os.set_blocking(w, False)
    kept += [r, w]
    os.write(w, bytes(1 << 16))


def solve(n):
    return 0
