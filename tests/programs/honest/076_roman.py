# tests: [{"stdin": "MCMXCIV\n", "stdout": "1994\n"}]
v = dict(I=1, V=5, X=10, L=50, C=100, D=500, M=1000)
s = input()
print(sum(-v[a] if v[a] < v.get(b, 0) else v[a] for a, b in zip(s, s[1:] + " ")))
