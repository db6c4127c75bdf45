# intent: ignore SIGALRM, SIGTERM and SIGXCPU, then loop
# expect: timeout
import signal
for s in (signal.SIGALRM, signal.SIGTERM, signal.SIGXCPU, signal.SIGINT, signal.SIGHUP):
    signal.signal(s, signal.SIG_IGN)
while True:
    pass


def solve(n):
    return 0
