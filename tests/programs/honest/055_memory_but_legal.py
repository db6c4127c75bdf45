# tests: [{"stdin": "", "stdout": "314572800 7\n"}]
x = bytearray(300 << 20)
x[-1] = 7
print(len(x), x[-1])
