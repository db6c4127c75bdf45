# intent: a power that never ends
# expect: timeout scored
def solve(n):
    return 9 ** 9 ** 9
