# intent: a million files
# expect: scored timeout
for i in range(10 ** 6):
    open(f"f{i}", "w").close()


def solve(n):
    return 0
