# intent: closures for ever
# expect: scored timeout
f = lambda: 0
while True:
    f = (lambda g, b: lambda: (g, b))(f, bytearray(1 << 18))


def solve(n):
    return 0
