# tests: [{"stdin": "2\n1 2\n3 4\n", "stdout": "1 3\n2 4\n"}]
n = int(input())
m = [list(map(int, input().split())) for _ in range(n)]
for row in zip(*m):
    print(*row)
