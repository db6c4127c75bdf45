# intent: a list that grows for ever
# expect: scored timeout
x = []
while True:
    x.append(bytearray(1 << 20))


def solve(n):
    return 0
