# tests: [{"stdin": "", "stdout": "1.4142135623730950488016887242096980785696718753769\n"}]
from decimal import Decimal, getcontext
getcontext().prec = 50
print(Decimal(2).sqrt())
