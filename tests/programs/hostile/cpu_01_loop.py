# intent: loop for ever
# expect: timeout
while True:
    pass


def solve(n):
    return 0
