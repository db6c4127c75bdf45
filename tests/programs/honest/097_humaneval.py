# tests: {"test": "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2, 'negative'\n    for i in range(3):\n        assert candidate(i) == i + i\n", "entry_point": "double"}
def double(x):
    return 2 * x
