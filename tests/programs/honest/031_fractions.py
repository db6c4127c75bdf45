# tests: [{"stdin": "", "stdout": "9227046511387/2329089562800\n"}]
from fractions import Fraction
print(sum(Fraction(1, i) for i in range(1, 30)))
