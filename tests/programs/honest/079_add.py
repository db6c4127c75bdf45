# tests: [{"call": "add", "arguments": [1, 2], "expected": 3}, {"call": "add", "arguments": [-1, 1], "expected": 0}, {"call": "add", "arguments": [2.5, 1], "expected": 3.5}]
def add(a, b):
    return a + b
