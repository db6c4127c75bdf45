# intent: parse the same JSON for ever
# expect: timeout
import json


def solve(n):
    while True:
        json.loads("[" * 200 + "]" * 200)
