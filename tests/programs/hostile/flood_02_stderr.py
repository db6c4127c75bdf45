# intent: write to stderr for ever
# expect: scored timeout
import sys
while True:
    sys.stderr.write("x" * 10000)


def solve(n):
    return 0
