# tests: [{"stdin": "", "stdout": "ready\n"}]
import time
time.sleep(1.2)
print("ready")
