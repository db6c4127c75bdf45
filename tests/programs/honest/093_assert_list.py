# tests: ["assert add(1, 2) == 3", "assert add(\"a\", \"b\") == \"ab\"", "assert not add(0, 0)"]
def add(a, b):
    return a + b
