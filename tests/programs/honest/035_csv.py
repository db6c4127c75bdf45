# tests: [{"stdin": "name,age\nann,3\nbob,5\n", "stdout": "['bob', '5']\n"}]
import csv, io, sys
rows = list(csv.reader(sys.stdin))
print(max(rows[1:], key=lambda r: int(r[1])))
