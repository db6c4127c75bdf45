"""A test, and how the result of a candidate is read: strictly, into plain values.

A result is one line of JSON that `runner.py` wrote, or that the candidate forged: it is only ever a
value, compared out here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rewards.programs.sandbox import Ended


class Malformed(Exception):
    """A result that no honest program produces: somebody wrote to the result pipe, or left it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    request: dict[str, Any]
    """What `runner.py` is sent."""
    accepts: Callable[[Any], bool]
    """Whether stdout (of a `stdin` test) or the returned value is right."""
    weak: bool = False
    """The assertion could not be split: it ran, whole, where the program could reach it."""
    label: str = field(default="", compare=False)

    def passed(self, ended: Ended) -> bool:
        """Raises Malformed for a result that an honest program cannot leave."""
        if "stdin" in self.request:
            return ended.status == 0 and self.accepts(ended.stdout.decode("utf-8", "replace"))
        if not ended.result:
            if ended.status == 0:
                raise Malformed("it ended with status 0 before its function returned")
            return False
        try:
            value = decode(ended.result)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise Malformed(f"its result is not what the harness writes: {error}"[:200]) from error
        try:
            return bool(self.accepts(value))
        except (TypeError, ValueError, RecursionError, OverflowError, ArithmeticError):
            return False  # like comparing a text with a number


class Other:
    """A value that is none of Python's plain ones; equal to nothing, itself included."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, _: object) -> bool:
        return False

    __hash__ = object.__hash__


def decode(data: bytes) -> Any:
    """The one value in a result. Raises ValueError, TypeError or RecursionError for anything but
    one line of exactly the form that `runner.py` writes."""
    if data.count(b"\n") != 1 or not data.endswith(b"\n"):
        raise ValueError("not one line")
    frame = json.loads(data, parse_constant=_refuse, object_pairs_hook=_no_twins)
    if not isinstance(frame, dict) or list(frame) != ["value"]:
        raise ValueError("not a frame")
    return _decoded(frame["value"])


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _decoded(item: Any) -> Any:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
        raise ValueError("not a [type, content] pair")
    kind, content = item
    if kind == "none" and content is None:
        return None
    if (kind == "bool" and isinstance(content, bool)) or (
        kind == "str" and isinstance(content, str)
    ):
        return content
    if kind in READERS and isinstance(content, str):
        return READERS[kind](content)
    if kind in CONTAINERS and isinstance(content, list):
        items = [_decoded(inner) for inner in content]
        if kind in ("set", "frozenset"):
            _spread(items)
        return CONTAINERS[kind](items)
    if kind == "dict" and isinstance(content, list):
        pairs = [(_decoded(key), _decoded(value)) for key, value in content]
        _spread([key for key, _ in pairs])
        return dict(pairs)
    if kind == "complex" and isinstance(content, list):
        real, imaginary = content
        return complex(float.fromhex(real), float.fromhex(imaginary))
    raise ValueError(f"no type {kind!r}")


def _spread(keys: list[Any]) -> None:
    """Refuse keys made to fall on the same hash: a table of them takes quadratic time."""
    if len(keys) > 500 and len({hash(key) for key in keys}) < len(keys) // 2:
        raise ValueError("keys with the same hash")


def _number(text: str) -> Any:
    """A Fraction or Decimal, whichever its text is of."""
    if len(text) > 10_000:
        raise ValueError("too long a number")
    try:
        return Fraction(text) if "/" in text else Decimal(text)
    except (InvalidOperation, ZeroDivisionError) as error:
        raise ValueError(str(error)) from error


READERS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "number": _number,
    "other": Other,
}
CONTAINERS: dict[str, Callable[[list], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
