# tests: [{"call": "qs", "arguments": [[3, 1, 2, 9, 4, 4]], "expected": [1, 2, 3, 4, 4, 9]}]
def qs(x):
    return x if len(x) < 2 else qs([v for v in x[1:] if v < x[0]]) + [x[0]] + qs([v for v in x[1:] if v >= x[0]])
