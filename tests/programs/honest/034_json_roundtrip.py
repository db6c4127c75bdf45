# tests: [{"stdin": "{\"b\": [1, 2.5, null], \"a\": \"\u00e9\"}\n", "stdout": "{\"a\": \"\\u00e9\", \"b\": [1, 2.5, null]}\n"}]
import json
print(json.dumps(json.loads(input()), sort_keys=True))
