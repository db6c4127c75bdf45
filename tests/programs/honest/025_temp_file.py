# tests: [{"stdin": "", "stdout": "['a', 'b']\n"}]
with open("notes.txt", "w") as f:
    f.write("a\nb\n")
print(open("notes.txt").read().split())
