# tests: [{"stdin": "1\n2\n3\n", "stdout": "6\n"}]
total = 0
while True:
    try:
        total += int(input())
    except EOFError:
        break
print(total)
