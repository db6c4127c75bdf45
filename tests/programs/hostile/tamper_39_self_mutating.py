# intent: a list that changes while it is read
# expect: scored timeout
class Moving(list):
    def __iter__(self):
        self.append(1)
        return iter([81273645])


def solve(n):
    return Moving([0])
