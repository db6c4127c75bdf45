"""The tests of a problem, split: what goes into the sandbox, and what stays outside.

A test has a `request`, which the candidate may see (an input, a call, an expression), and a
verdict on what came back, computed here from plain values. The expected answer never goes in.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rewards.programs.assertions import assertions
from rewards.programs.frames import Test


def suite_of(answer: str) -> list[Test]:
    """The tests in a reference answer: JSON in one of these forms, or assertions as they are.

    - `[{"stdin": "1 2", "stdout": "3"}, {"call": "add", "arguments": [1, 2], "expected": 3},
      {"assert": "assert add(1, 2) == 3"}]`, also with `input`/`output` and `testtype`
      (LiveCodeBench);
    - `{"inputs": [...], "outputs": [...], "fn_name": "add"}`, without `fn_name` for programs that
      read stdin (APPS, TACO, verl);
    - `["assert add(1, 2) == 3", ...]` or `{"test_list": [...], "test_setup_code": "..."}` (MBPP);
    - `{"test": "def check(candidate): ...", "entry_point": "add"}` (HumanEval).

    Raises ValueError when it is none of them, or holds no test.
    """
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        content = {"test": answer}
    try:
        tests = list(_tests(content))
    except (KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"no tests in {answer[:80]!r}: {error!r}"[:300]) from error
    if not tests:
        raise ValueError(f"no tests in the reference answer {answer[:80]!r}")
    return tests


def _tests(content: Any) -> list[Test]:
    if isinstance(content, list):
        return [test for item in content for test in _one(item)]
    if not isinstance(content, dict):
        raise ValueError(f"tests are a list or an object, not {content!r}"[:200])
    if "inputs" in content and "outputs" in content:
        name = content.get("fn_name")
        pairs = zip(content["inputs"], content["outputs"], strict=True)
        if name:
            return [call(name, arguments, _only(expected)) for arguments, expected in pairs]
        return [stdin(_lines(given), _lines(expected)) for given, expected in pairs]
    if "test_list" in content:
        setup = content.get("test_setup_code") or ""
        more = content.get("challenge_test_list") or []
        return [t for source in [*content["test_list"], *more] for t in assertions(source, setup)]
    if "test" in content:
        return assertions(content["test"], "", content.get("entry_point", ""))
    return _one(content)


def _one(item: Any) -> list[Test]:
    if isinstance(item, str):
        return assertions(item, "")
    if not isinstance(item, dict):
        raise ValueError(f"a test is an object or an assertion, not {item!r}"[:200])
    if "assert" in item:
        return assertions(item["assert"], item.get("setup", ""))
    if "call" in item:
        return [call(item["call"], item.get("arguments", item.get("args", [])), item["expected"])]
    name = item.get("fn_name") or item.get("func_name")
    if name and item.get("testtype", "functional") == "functional":
        lines = [json.loads(line) for line in item["input"].splitlines() if line.strip()]
        return [call(name, lines, json.loads(item["output"]))]
    for given, expected in (("stdin", "stdout"), ("input", "output")):
        if expected in item:
            return [stdin(_lines(item.get(given, "")), _lines(item[expected]))]
    raise ValueError(f"a test without an expected result: {item!r}"[:200])


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _only(expected: Any) -> Any:
    """APPS wraps what a function returns in a list of one; others do not."""
    if isinstance(expected, list) and len(expected) == 1:
        return AnyOf((expected[0], expected))
    return expected


@dataclass(frozen=True)
class AnyOf:
    values: tuple[Any, ...]


def stdin(given: str, expected: str) -> Test:
    """A program that reads `given` and prints `expected`, but for white space at the ends of lines
    and of the whole. Where the expected output is no drawing (nothing indented, no two spaces in a
    row), spaces between words do not count and decimals may be written in another way ("1.0" for
    "1")."""
    return Test(
        request={"stdin": given}, accepts=lambda out: same_output(out, expected), label=given[:80]
    )


def same_output(found: str, expected: str) -> bool:
    """
    >>> same_output("1.50 a \\n", "1.5 a"), same_output("1 2", "12")
    (True, False)
    """
    exactly = [line.rstrip() for line in expected.rstrip().splitlines()]
    if [line.rstrip() for line in found.rstrip().splitlines()] == exactly:
        return True
    if DRAWN.search(expected):
        return False
    ours = [line.split() for line in found.strip().splitlines()]
    theirs = [line.split() for line in expected.strip().splitlines()]
    return [len(line) for line in ours] == [len(line) for line in theirs] and all(
        a == b or _equal_numbers(a, b)
        for line, other in zip(ours, theirs, strict=True)
        for a, b in zip(line, other, strict=True)
    )


DRAWN = re.compile(r"^[ \t]+\S|\S {2,}\S", re.MULTILINE)
PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,300})(?:\.[0-9]{1,300})?")


def _equal_numbers(a: str, b: str) -> bool:
    both = PLAIN_NUMBER.fullmatch(a) and PLAIN_NUMBER.fullmatch(b)
    return bool(both) and Decimal(a) == Decimal(b)


def call(name: str, arguments: Sequence[Any], expected: Any) -> Test:
    """A function (or a method of a class `Solution`) whose result is `expected`, a JSON value. A
    tuple may stand for a list, as JSON has none; a bool may not stand for a number."""
    return Test(
        request={"call": str(name), "arguments": list(arguments)},
        accepts=lambda value: same_json(value, expected),
        label=f"{name}({', '.join(map(repr, arguments))})"[:80],
    )


def same_json(value: Any, expected: Any) -> bool:
    if isinstance(expected, AnyOf):
        return any(same_json(value, each) for each in expected.values)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same_json, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        value = {str(key): inner for key, inner in value.items()}
        return value.keys() == expected.keys() and all(
            same_json(value[k], expected[k]) for k in value
        )
    return isinstance(value, bool) == isinstance(expected, bool) and value == expected
