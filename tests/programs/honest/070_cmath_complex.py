# tests: [{"stdin": "", "stdout": "True\n"}]
import cmath
print(abs(cmath.exp(1j * cmath.pi) + 1) < 1e-9)
