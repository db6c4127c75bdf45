# intent: a result nested a hundred thousand deep, written by hand
# expect: tampered
import os
os.write(3, b'{"value": ' + b"[" * 100000 + b"]" * 100000 + b"}\n")
os._exit(0)


def solve(n):
    return 0
