# tests: {"inputs": ["1 2 3\n", "4\n"], "outputs": ["6\n", "4\n"]}
print(sum(map(int, input().split())))
