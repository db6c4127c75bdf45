# intent: bytes that are no UTF-8
# expect: scored tampered
import os
os.write(1, bytes(range(128, 256)) * 100)


def solve(n):
    return "\udcff"
