# intent: poison sys.modules
# expect: scored
import sys
sys.modules["json"] = sys.modules["os"] = sys


def solve(n):
    return 0
