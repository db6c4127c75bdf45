# intent: swallow every exception and go on
# expect: timeout
def solve(n):
    while True:
        try:
            while True:
                n += 1
        except BaseException:
            pass
