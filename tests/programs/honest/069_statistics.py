# tests: [{"stdin": "", "stdout": "2.5 2\n"}]
import statistics
print(statistics.mean([1, 2, 3, 4]), statistics.median([1, 5, 2]))
