# tests: [{"stdin": "", "stdout": "[[1], [2]] [[1, 9], [2]]\n"}]
import copy
a = [[1], [2]]
b = copy.deepcopy(a)
b[0].append(9)
print(a, b)
