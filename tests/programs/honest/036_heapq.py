# tests: [{"stdin": "5 3 8 1\n", "stdout": "[1, 3, 5, 8]\n"}]
import heapq
h = list(map(int, input().split()))
heapq.heapify(h)
print([heapq.heappop(h) for _ in range(len(h))])
