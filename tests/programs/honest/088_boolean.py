# tests: [{"call": "prime", "arguments": [7], "expected": true}, {"call": "prime", "arguments": [8], "expected": false}]
def prime(n):
    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))
