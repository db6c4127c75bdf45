# intent: a second frame at exit
# expect: tampered
import atexit, os
atexit.register(lambda: os.write(3, b'{"value": ["int", "0x1"]}\n'))


def solve(n):
    return 0
