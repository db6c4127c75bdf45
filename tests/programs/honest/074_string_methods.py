# tests: [{"stdin": "hello world\n", "stdout": "****hello world***** Hello World ['hell', ' w', 'rld'] he001 w1r0d\n"}]
s = input()
print(s.center(20, "*"), s.title(), s.split("o"), s.translate(str.maketrans("lo", "01")))
