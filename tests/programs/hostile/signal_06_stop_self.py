# intent: stop itself
# expect: timeout
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)


def solve(n):
    return 0
