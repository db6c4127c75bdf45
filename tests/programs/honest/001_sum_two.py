# tests: [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "-5 7\n", "stdout": "2\n"}, {"stdin": "100000000000 1\n", "stdout": "100000000001\n"}]
a, b = map(int, input().split())
print(a + b)
