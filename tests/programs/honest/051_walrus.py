# tests: [{"stdin": "a\nb\nend\n", "stdout": "A\nB\n"}]
while (line := input()) != "end":
    print(line.upper())
