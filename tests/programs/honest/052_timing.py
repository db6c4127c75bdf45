# tests: [{"stdin": "", "stdout": "True\n"}]
import time
t = time.perf_counter()
time.sleep(0.05)
print(time.perf_counter() - t >= 0.05)
