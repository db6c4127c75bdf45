# intent: print for ever
# expect: scored timeout
while True:
    print("x" * 10000)


def solve(n):
    return 0
