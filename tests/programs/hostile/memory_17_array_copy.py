# intent: copies of copies
# expect: scored timeout
import array
x = array.array("q", range(1000))
while True:
    x.extend(x)


def solve(n):
    return 0
