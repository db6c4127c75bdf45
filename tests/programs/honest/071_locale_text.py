# tests: [{"stdin": "", "stdout": "word word word word word word\nword word word word word word\nword word word word word word\nword word\nabcdefghijklmnopqrstuvwxyz\n"}]
import textwrap, string
print(textwrap.fill("word " * 20, 30))
print(string.ascii_lowercase)
