# intent: True for a number
# expect: scored
def solve(n):
    return True
