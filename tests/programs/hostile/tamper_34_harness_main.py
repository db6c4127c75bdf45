# intent: call the harness from within
# expect: scored tampered
def attack():
    import sys
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
    frame.f_globals["_write_frame"] = lambda value: None
    return False


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
