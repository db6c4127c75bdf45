# intent: return a text of a gigabyte
# expect: scored timeout
def solve(n):
    return "x" * (1 << 29)
