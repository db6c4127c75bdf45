# tests: [{"call": "table", "arguments": [4], "expected": {"rows": [[0, 0, 0, 0], [0, 1, 2, 3], [0, 2, 4, 6], [0, 3, 6, 9]], "n": 4, "ok": true, "none": null}}]
def table(n):
    return {"rows": [[i * j for j in range(n)] for i in range(n)], "n": n, "ok": True, "none": None}
