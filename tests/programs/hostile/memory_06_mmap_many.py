# intent: many shared mappings
# expect: scored timeout
import mmap
x = []
while True:
    m = mmap.mmap(-1, 1 << 26)
    m[:] = b"x" * (1 << 26)
    x.append(m)


def solve(n):
    return 0
