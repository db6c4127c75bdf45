# intent: recursion in C, to overflow the stack
# expect: scored timeout
def solve(n):
    x = []
    for _ in range(10 ** 6):
        x = [x]
    return hash(repr(x)) * 0
