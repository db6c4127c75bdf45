# tests: [{"call": "rev", "arguments": ["h\u00e9llo"], "expected": "oll\u00e9h"}, {"call": "rev", "arguments": [""], "expected": ""}]
def rev(s):
    return s[::-1]
