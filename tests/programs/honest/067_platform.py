# tests: [{"stdin": "", "stdout": "True CPython\n"}]
import platform, sys
print(sys.version_info >= (3, 8), platform.python_implementation())
