# tests: [{"stdin": "a@b.com c@d.com\n", "stdout": "[('a', 'b'), ('c', 'd')]\n"}]
import re
print(re.findall(r"(\w+)@(\w+)\.com", input()))
