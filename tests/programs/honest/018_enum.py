# tests: [{"stdin": "", "stdout": "[<C.A: 1>, <C.B: 2>]\n"}]
import enum


class C(enum.Enum):
    A = 1
    B = enum.auto()


print(list(C))
