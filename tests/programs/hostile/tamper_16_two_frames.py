# intent: a frame of its own before the honest one
# expect: tampered
import os


def solve(n):
    os.write(3, b'{"value": ["int", "0x1"]}\n')
    return 2
