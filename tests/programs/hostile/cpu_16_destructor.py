# intent: loop in a destructor
# expect: timeout
class Sticky:
    def __del__(self):
        while True:
            pass


def solve(n):
    Sticky()
    return 0
