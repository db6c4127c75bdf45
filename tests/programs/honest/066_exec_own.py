# tests: [{"stdin": "", "stdout": "42 2\n"}]
ns = {}
exec("x = 6 * 7", ns)
print(ns["x"], eval("1 + 1"))
