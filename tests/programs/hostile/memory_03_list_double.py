# intent: a list that doubles
# expect: scored timeout
x = [0]
while True:
    x += x


def solve(n):
    return 0
