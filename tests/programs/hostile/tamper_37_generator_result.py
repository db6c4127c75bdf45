# intent: return a generator
# expect: scored
def solve(n):
    return (x for x in [81273645])
