# intent: a thread that works on after the verdict
# expect: scored
import threading, time


def work():
    while True:
        try:
            open("/tmp/cohort_marker", "w").close()
        except OSError:
            pass
        time.sleep(0.1)


threading.Thread(target=work, daemon=True).start()


def solve(n):
    return 0
