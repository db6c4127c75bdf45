# tests: {"test_list": ["assert largest([1, 3, 2]) == 3", "assert largest(DATA) == 9"], "test_setup_code": "DATA = [4, 9, 1]"}
def largest(x):
    return max(x)
