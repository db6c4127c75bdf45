# tests: [{"call": "bubble", "arguments": [[5, 2, 7, 1]], "expected": [1, 2, 5, 7]}]
def bubble(x):
    for i in range(len(x)):
        for j in range(len(x) - 1 - i):
            if x[j] > x[j + 1]:
                x[j], x[j + 1] = x[j + 1], x[j]
    return x
