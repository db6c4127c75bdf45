# tests: [{"stdin": "", "stdout": "[42, 20, 51, 84, 7, 10, 69, 13, 47, 75]\n"}]
import random
random.seed(7)
print([random.randint(1, 100) for _ in range(10)])
