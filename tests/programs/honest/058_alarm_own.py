# tests: [{"stdin": "", "stdout": "late\n"}]
import signal, time


class Late(Exception):
    pass


def raise_late(*_):
    raise Late


signal.signal(signal.SIGALRM, raise_late)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    time.sleep(5)
except Late:
    print("late")
