# tests: [{"stdin": "3 1 2\n", "stdout": "[1, 2, 3]\n"}]
print(sorted(map(int, open(0).read().split())))
