# tests: [{"stdin": "", "stdout": "hello\n"}]
import os
r, w = os.pipe()
os.write(w, b"hello")
print(os.read(r, 5).decode())
