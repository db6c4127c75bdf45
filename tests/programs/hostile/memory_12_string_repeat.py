# intent: a text of 64 GiB
# expect: scored timeout
x = "a" * (64 << 30)


def solve(n):
    return 0
