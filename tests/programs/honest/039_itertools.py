# tests: [{"stdin": "", "stdout": "40320 1024\n"}]
from itertools import permutations, product
print(len(list(permutations(range(8)))), len(list(product("ab", repeat=10))))
