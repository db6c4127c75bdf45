# intent: a thread that is never done keeps the process
# expect: timeout scored
import threading, time
threading.Thread(target=time.sleep, args=(3600,)).start()


def solve(n):
    return 0
