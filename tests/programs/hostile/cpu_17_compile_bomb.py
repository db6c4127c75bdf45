# intent: a constant expression that the compiler folds for ever
# expect: timeout scored
def solve(n):
    return eval("(" * 80 + "9" + "**9)" * 80)
