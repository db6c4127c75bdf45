# intent: loop in an exit handler
# expect: timeout scored
import atexit


@atexit.register
def never():
    while True:
        pass


def solve(n):
    return 0
