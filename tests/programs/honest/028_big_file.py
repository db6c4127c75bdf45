# tests: [{"stdin": "", "stdout": "10485760\n"}]
with open("big", "wb") as f:
    f.write(bytes(10 << 20))
import os
print(os.path.getsize("big"))
