# intent: NaN
# expect: scored
def solve(n):
    return float("nan")
