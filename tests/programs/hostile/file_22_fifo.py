# intent: block on a FIFO
# expect: scored timeout
import os
os.mkfifo("f")
open("f").read()


def solve(n):
    return 0
