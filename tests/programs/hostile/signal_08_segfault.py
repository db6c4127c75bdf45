# intent: crash
# expect: scored
import ctypes
ctypes.string_at(0)


def solve(n):
    return 0
