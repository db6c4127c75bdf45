# intent: shifts into a number of gigabytes
# expect: timeout scored
def solve(n):
    return (1 << (1 << 40)) % 7
