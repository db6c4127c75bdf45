# tests: [{"stdin": "", "stdout": "1000\n"}]
import tempfile
with tempfile.NamedTemporaryFile("w+") as f:
    f.write("x" * 1000)
    f.flush()
    f.seek(0)
    print(len(f.read()))
