# intent: sleep in C, where no Python signal handler runs
# expect: timeout
import ctypes


def solve(n):
    return ctypes.CDLL(None).sleep(3600)
