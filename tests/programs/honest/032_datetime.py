# tests: [{"stdin": "", "stdout": "2024-03-01\n"}]
from datetime import date, timedelta
print(date(2024, 2, 28) + timedelta(days=2))
