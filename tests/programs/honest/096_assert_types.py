# tests: ["assert c(\"aab\") == {\"a\": 2, \"b\": 1}", "assert d() == {\"a\": [(1, 2.5)]}", "assert c(\"\") == {} and len(c(\"xyz\")) == 3"]
from collections import Counter, defaultdict


def c(x):
    return Counter(x)


def d():
    r = defaultdict(list)
    r["a"].append((1, 2.5))
    return r
