# tests: [{"stdin": "abc\n", "stdout": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"}]
import hashlib
print(hashlib.sha256(input().encode()).hexdigest())
