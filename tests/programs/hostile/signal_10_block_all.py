# intent: block all signals and loop
# expect: timeout
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    pass


def solve(n):
    return 0
