# intent: terminal escapes
# expect: scored
print("\x1b[2J\x1b]0;owned\x07" * 1000)


def solve(n):
    return "\x1b[31m81273645"
