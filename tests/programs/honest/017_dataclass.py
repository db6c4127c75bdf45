# tests: [{"stdin": "", "stdout": "[P(x=1, y=5, tags=[]), P(x=2, y=0, tags=[])]\n"}]
from dataclasses import dataclass, field


@dataclass(order=True)
class P:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)


print(sorted([P(2), P(1, 5)]))
