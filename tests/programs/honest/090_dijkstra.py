# tests: [{"call": "dist", "arguments": [{"a": [["b", 1], ["c", 5]], "b": [["c", 2]]}, "a"], "expected": [["a", 0], ["b", 1], ["c", 3]]}]
import heapq


def dist(g, s):
    d = {s: 0}
    h = [(0, s)]
    while h:
        c, u = heapq.heappop(h)
        for v, w in g.get(u, []):
            if c + w < d.get(v, 1e9):
                d[v] = c + w
                heapq.heappush(h, (c + w, v))
    return sorted(d.items())
