# tests: [{"stdin": "", "stdout": "ok\n"}]
import sys
print("debug", file=sys.stderr)
print("ok")
