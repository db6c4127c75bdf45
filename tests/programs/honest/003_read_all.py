# tests: [{"stdin": "1 2 3\n4 5\n", "stdout": "5 15\n"}]
import sys
data = sys.stdin.read().split()
print(len(data), sum(map(int, data)))
