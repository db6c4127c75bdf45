# intent: infinity
# expect: scored
def solve(n):
    return float("inf")
