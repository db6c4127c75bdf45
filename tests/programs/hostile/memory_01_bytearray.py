# intent: a bytearray of 64 GiB
# expect: scored timeout
x = bytearray(64 << 30)


def solve(n):
    return 0
