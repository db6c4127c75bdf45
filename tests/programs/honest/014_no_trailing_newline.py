# tests: [{"stdin": "", "stdout": "done"}]
import sys
sys.stdout.write("done")
