# tests: {"inputs": [[3], [4]], "outputs": [[9], [16]], "fn_name": "square"}
def square(n):
    return n * n
