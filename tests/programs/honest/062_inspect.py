# tests: [{"stdin": "", "stdout": "(a, b=2, *c, **d)\n"}]
import inspect


def f(a, b=2, *c, **d):
    pass


print(inspect.signature(f))
