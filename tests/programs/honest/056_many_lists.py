# tests: [{"stdin": "", "stdout": "99000000\n"}]
x = [list(range(100)) for _ in range(20000)]
print(sum(map(sum, x)))
