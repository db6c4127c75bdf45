# tests: [{"stdin": "", "stdout": "b'ab' ['x\\n', 'y']\n"}]
import io
b = io.BytesIO(b"abc")
print(b.read(2), io.StringIO("x\ny").readlines())
