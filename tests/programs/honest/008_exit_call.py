# tests: [{"stdin": "5\n", "stdout": "big\n"}, {"stdin": "1\n", "stdout": "small\n"}]
n = int(input())
if n > 3:
    print("big")
    exit()
print("small")
