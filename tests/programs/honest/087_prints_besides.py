# tests: [{"call": "f", "arguments": [4], "expected": 8}]
def f(x):
    print("debugging", x)
    return x * 2
