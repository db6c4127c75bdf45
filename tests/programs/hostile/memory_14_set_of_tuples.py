# intent: tuples for ever
# expect: scored timeout
x = set()
i = 0
while True:
    i += 1
    x.add(tuple(range(i, i + 1000)))


def solve(n):
    return 0
