# tests: [{"stdin": "abc\ndef\n", "stdout": "cba\nfed\n"}, {"stdin": "", "stdout": ""}]
import sys
for line in sys.stdin:
    print(line.rstrip()[::-1])
