# tests: [{"stdin": "", "stdout": "True\n"}]
import base64, zlib
print(zlib.decompress(base64.b64decode(base64.b64encode(zlib.compress(b"hi" * 100)))) == b"hi" * 100)
