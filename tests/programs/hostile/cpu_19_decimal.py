# intent: a decimal power of great precision
# expect: timeout scored
import decimal
decimal.getcontext().prec = 10 ** 7


def solve(n):
    return int(decimal.Decimal(2) ** decimal.Decimal("1e6") % 2) * 0 + int(decimal.Decimal(2).sqrt() * 0)
