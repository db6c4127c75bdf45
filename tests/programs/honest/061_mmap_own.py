# tests: [{"stdin": "", "stdout": "hello\n"}]
import mmap
m = mmap.mmap(-1, 1 << 20)
m[:5] = b"hello"
print(m[:5].decode())
