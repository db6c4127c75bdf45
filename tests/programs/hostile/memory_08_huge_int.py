# intent: an integer of a hundred million digits
# expect: scored timeout
def solve(n):
    return json_like(n)


def json_like(n):
    return 10 ** (10 ** 8) if n else 0
