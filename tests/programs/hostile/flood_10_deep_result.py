# intent: return a list nested without end
# expect: scored
def solve(n):
    x = []
    x.append(x)
    return x
