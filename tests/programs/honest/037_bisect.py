# tests: [{"stdin": "4\n", "stdout": "2\n"}]
import bisect
print(bisect.bisect([1, 3, 5], int(input())))
