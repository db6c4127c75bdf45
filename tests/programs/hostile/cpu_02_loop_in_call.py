# intent: loop for ever once called
# expect: timeout
def solve(n):
    while True:
        n += 1
