# intent: decompress a gigabyte of zeros, again and again
# expect: scored timeout
import zlib
small = zlib.compress(bytes(1 << 26))
x = []
while True:
    x.append(zlib.decompress(small))


def solve(n):
    return 0
