# tests: [{"call": "pair", "arguments": [3], "expected": [3, 4]}]
def pair(n):
    return n, n + 1
