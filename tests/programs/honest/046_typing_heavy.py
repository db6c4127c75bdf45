# tests: [{"stdin": "", "stdout": "3\n"}]
from typing import Dict, List, Optional, TypeVar, Generic
T = TypeVar("T")


class Box(Generic[T]):
    def __init__(self, v: Optional[T] = None) -> None:
        self.v = v


print(Box[int](3).v)
