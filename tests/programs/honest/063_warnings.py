# tests: [{"stdin": "", "stdout": "fine\n"}]
import warnings
warnings.warn("careful")
print("fine")
