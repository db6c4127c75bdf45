# tests: [{"stdin": "", "stdout": "9000000\n"}]
total = 0
for i in range(6 * 10 ** 6):
    total += i & 3
print(total)
