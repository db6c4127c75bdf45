# tests: [{"stdin": "mississippi\n", "stdout": "[('i', 4), ('s', 4), ('p', 2)]\n"}]
from collections import Counter, OrderedDict, defaultdict, deque
print(Counter(input()).most_common(3))
