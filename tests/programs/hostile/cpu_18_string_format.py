# intent: a format with an enormous width
# expect: scored timeout
def solve(n):
    return len("%*d" % (2 ** 31 - 2, 1)) * 0
