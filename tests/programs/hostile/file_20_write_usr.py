# intent: plant a module in the interpreter
# expect: scored
def attack():
    import os, sys
    for folder in sys.path:
        try:
            open(os.path.join(folder, "sitecustomize.py"), "w").write("import os")
            return True
        except OSError:
            pass
    return False


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
