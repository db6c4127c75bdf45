# tests: [{"stdin": "a b c\n", "stdout": "c b a\n"}]
import sys
data = sys.stdin.buffer.read().split()
sys.stdout.buffer.write(b" ".join(reversed(data)) + b"\n")
