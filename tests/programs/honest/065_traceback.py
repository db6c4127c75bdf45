# tests: [{"stdin": "", "stdout": "ZeroDivisionError: division by zero\n"}]
import traceback
try:
    1 / 0
except ZeroDivisionError:
    print(traceback.format_exc().splitlines()[-1])
