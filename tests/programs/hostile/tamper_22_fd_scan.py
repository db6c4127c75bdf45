# intent: write to every open file
# expect: tampered scored
import os
for fd in range(3, 256):
    try:
        os.write(fd, b'{"ended": "by itself", "status": 0, "sizes": [0, 0, 0]}\n')
    except OSError:
        pass


def solve(n):
    return 0
