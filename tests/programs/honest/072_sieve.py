# tests: [{"stdin": "", "stdout": "17984\n"}]
n = 200000
s = bytearray([1]) * (n + 1)
s[:2] = b"\0\0"
for i in range(2, 448):
    if s[i]:
        s[i * i :: i] = bytes(len(s[i * i :: i]))
print(sum(s))
