# tests: ["assert uniq([1, 1, 2]) == set([1, 2])", "assert uniq([]) == set()"]
def uniq(x):
    return set(x)
