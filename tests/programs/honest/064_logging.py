# tests: [{"stdin": "", "stdout": "logged\n"}]
import logging
logging.basicConfig(level=logging.INFO)
logging.info("x")
print("logged")
