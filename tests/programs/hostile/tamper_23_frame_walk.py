# intent: look for the expected answer in the callers' frames
# expect: scored
def attack():
    import sys
    frame = sys._getframe()
    while frame:
        if str(90000000 - 8726355) in repr(frame.f_locals) and frame.f_code.co_filename != "program.py":
            return True
        frame = frame.f_back
    return False


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
