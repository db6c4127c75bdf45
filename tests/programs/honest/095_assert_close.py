# tests: ["assert math.isclose(area(2), 12.566370614359172, rel_tol=1e-9)", "assert abs(area(1) - 3.14159) < 1e-3", "import math\nassert area(1) == math.pi"]
import math


def area(r):
    return math.pi * r * r
