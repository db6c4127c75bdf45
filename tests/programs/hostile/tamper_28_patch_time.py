# intent: stop the clock
# expect: timeout
import time
time.monotonic = time.time = lambda: 0.0
while True:
    pass
