# tests: [{"stdin": "3.14159\n", "stdout": "3.142 3.141590e+00 3.14159\n"}]
x = float(input())
print(f"{x:.3f} {x:e} {x!r}")
