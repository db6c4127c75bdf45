# tests: [{"stdin": "\u00e9\u00e0\u00fc \ud83d\ude42\n", "stdout": "5 \u00c9\u00c0\u00dc \ud83d\ude42 \u2192 233\n"}]
s = input()
print(len(s), s.upper(), "→", ord(s[0]))
