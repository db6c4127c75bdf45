# tests: [{"call": "best", "arguments": [[1, 3, 4, 5], [1, 4, 5, 7], 7], "expected": 9}]
def best(w, v, c):
    d = [0] * (c + 1)
    for a, b in zip(w, v):
        for j in range(c, a - 1, -1):
            d[j] = max(d[j], d[j - a] + b)
    return d[c]
