# intent: a chain of exceptions that holds its frames
# expect: scored timeout
def solve(n):
    e = None
    while True:
        try:
            block = bytearray(1 << 20)
            raise ValueError(block) from e
        except ValueError as caught:
            e = caught
