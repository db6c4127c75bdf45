# intent: map 64 GiB
# expect: scored timeout
import mmap
x = mmap.mmap(-1, 64 << 30)
for i in range(0, 64 << 30, 4096):
    x[i] = 1


def solve(n):
    return 0
