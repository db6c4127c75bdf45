# tests: [{"stdin": "", "stdout": "[0, 1, 2, 3, 4, 'a', 'b']\n"}]
def g():
    yield from range(5)
    yield from "ab"


print(list(g()))
