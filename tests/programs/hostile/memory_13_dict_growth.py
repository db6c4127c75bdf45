# intent: a dict that grows for ever
# expect: scored timeout
x = {}
while True:
    x[len(x)] = str(len(x)) * 100


def solve(n):
    return 0
