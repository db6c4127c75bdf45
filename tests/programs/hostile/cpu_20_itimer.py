# intent: a timer whose handler never returns
# expect: timeout
import signal, time


def handler(*_):
    while True:
        pass


signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
time.sleep(3600)


def solve(n):
    return 0
