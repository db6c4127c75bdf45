# intent: threads with stacks of a gigabyte
# expect: scored timeout
import threading, time
threading.stack_size(1 << 30)
for _ in range(64):
    threading.Thread(target=time.sleep, args=(60,)).start()


def solve(n):
    return 0
