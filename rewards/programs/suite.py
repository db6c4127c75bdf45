"""The tests of a problem, split: what goes into the sandbox, and what stays outside.

A test has a `request`, which the candidate may see (an input, a call, an expression), and a
verdict on what came back, computed here from plain values. The expected answer never goes in.
"""

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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

# -- what a dataset says --------------------------------------------------------------------------


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


# -- assertions, split ----------------------------------------------------------------------------

OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
MIRRORED = {ast.Eq: ast.Eq, ast.NotEq: ast.NotEq, ast.Lt: ast.Gt, ast.Gt: ast.Lt,
            ast.LtE: ast.GtE, ast.GtE: ast.LtE}  # fmt: skip


def assertions(source: str, setup: str, entry_point: str = "") -> list[Test]:
    """The `assert` statements of a source text, or of its `check(candidate)` where an entry point
    is named. Whatever else it does (imports, assignments) is setup and goes in.

    Raises ValueError when the text is no Python.
    """
    try:
        return list(_Body(setup).tests(ast.parse(source).body, entry_point))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"tests are neither JSON nor Python: {error}") from error


class _Body:
    """The statements of a test, in order: what each assertion needs to have run before it."""

    def __init__(self, setup: str) -> None:
        self._before: list[str] = []
        self._assigned: set[str] = set()
        """By the test itself: what is made of them may change from assertion to assertion."""
        self._defined: set[str] = set()
        for statement in ast.parse(setup).body:
            self._run(statement)
        self._before = [setup] if setup else []
        self._assigned.clear()

    def tests(self, body: list[ast.stmt], entry_point: str = "") -> Iterator[Test]:
        for statement in body:
            if isinstance(statement, ast.Assert):
                yield from self._assertion(statement)
            elif isinstance(statement, ast.FunctionDef) and _asserts(statement):
                yield from self._function(statement, entry_point)
            elif _asserts(statement):
                if isinstance(statement, ast.ClassDef | ast.AsyncFunctionDef):
                    raise ValueError(f"tests in {statement.name!r} would never be called")
                yield _whole("\n".join([*self._before, ast.unparse(statement)]))
                self._run(statement)
            else:
                self._run(statement)

    def _function(self, function: ast.FunctionDef, entry_point: str) -> Iterator[Test]:
        """The body of `check(candidate)`, or of a `test_...()` that nobody would call."""
        arguments = function.args.args
        if function.name == "check" and entry_point and len(arguments) == 1:
            self._before.append(f"{arguments[0].arg} = {entry_point}")
        elif arguments or not function.name.startswith("test"):
            self._run(function)  # a helper of other assertions, which are weak when they call it
            return
        yield from self.tests(function.body)

    def _run(self, statement: ast.stmt) -> None:
        self._before.append(ast.unparse(statement))
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self._defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._assigned.add(node.id)

    def _assertion(self, statement: ast.Assert) -> Iterator[Test]:
        parts = _conjuncts(statement.test)
        if len(parts) > 1 and _names_values(statement.test):
            parts = [statement.test]
        for part in parts:
            before = "\n".join(self._before)
            test = _split(part, before) or _whole(f"{before}\nassert {ast.unparse(part)}".strip())
            names = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
            yield replace(test, weak=test.weak or bool(names & self._defined))
            if names & self._assigned or _names_values(part):
                # What it does to the test's own objects, the next assertion finds done.
                self._before.append(f"({test.request['evaluate'] or ast.unparse(part)})")


def _asserts(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _names_values(expression: ast.expr) -> bool:
    return any(isinstance(node, ast.NamedExpr) for node in ast.walk(expression))


def _conjuncts(test: ast.expr) -> list[ast.expr]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [part for value in test.values for part in _conjuncts(value)]
    return [test]


def _whole(source: str) -> Test:
    return Test(
        request={"evaluate": None, "setup": source},
        accepts=lambda value: value is True,
        weak=True,
        label=source.strip().splitlines()[-1][:80],
    )


def _split(test: ast.expr, setup: str) -> Test | None:
    """The test with its expected literal outside; None when it has none."""

    def asking(expression: ast.expr, accepts: Callable[[Any], bool]) -> Test:
        source = ast.unparse(expression)
        return Test(
            request={"evaluate": source, "setup": setup},
            accepts=accepts,
            weak=_tells(expression),
            label=source[:80],
        )

    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, op, right = test.left, type(test.ops[0]), test.comparators[0]
        if _distance(left) is None and _distance(right) is not None and op in MIRRORED:
            left, op, right = right, MIRRORED[op], left
        distance = _distance(left)
        try:
            if distance is not None and op in (ast.Lt, ast.LtE):
                bound = literal(right)
                asked, expected = distance
                compare = OPERATORS[op]
                return asking(asked, lambda value: compare(abs(value - expected), bound))
            try:
                expected = literal(right)
            except ValueError:
                expected, left, op = literal(left), right, MIRRORED[op]
        except (ValueError, KeyError):
            return None
        compare = OPERATORS[op]
        return asking(left, lambda value: compare(value, expected))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return asking(test.operand, lambda value: not isinstance(value, Other) and not value)
    if isinstance(test, ast.Call):
        name = ast.unparse(test.func)
        if name in ("math.isclose", "isclose") and len(test.args) == 2:
            try:
                options = {str(k.arg): literal(k.value) for k in test.keywords}
                expected = literal(test.args[1])
            except ValueError:
                return None
            return asking(test.args[0], lambda value: math.isclose(value, expected, **options))
        return asking(test, lambda value: isinstance(value, Other) or bool(value))
    return None


def _tells(expression: ast.expr) -> bool:
    """What goes in says what is expected: it compares, or calculates with what was returned, or
    calls something (`close(f(3), 9)`) on what was returned and a constant."""
    for node in ast.walk(expression):
        calls = any(isinstance(inner, ast.Call) for inner in ast.walk(node))
        if isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and calls):
            return True
    return (
        isinstance(expression, ast.Call)
        and any(isinstance(argument, ast.Call) for argument in expression.args)
        and any(isinstance(argument, ast.Constant) for argument in expression.args)
    )


def _distance(node: ast.expr) -> tuple[ast.expr, Any] | None:
    """(x, 3) of `abs(x - 3)`."""
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("abs", "math.fabs")
        and len(node.args) == 1
        and isinstance(node.args[0], ast.BinOp)
        and isinstance(node.args[0].op, ast.Sub)
    ):
        pair = node.args[0]
        for asked, known in ((pair.left, pair.right), (pair.right, pair.left)):
            try:
                return asked, literal(known)
            except ValueError:
                continue
    return None


ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MAKERS = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "dict": dict,
          "float": float, "int": int, "str": str, "complex": complex, "sorted": sorted,
          "math.sqrt": math.sqrt}  # fmt: skip
CONSTANTS = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf, "math.nan": math.nan}
LARGEST = 100_000


def literal(node: ast.expr) -> Any:
    """The value of an expression of constants: literals, signs, small arithmetic, `set([1, 2])`,
    `float("inf")`, `math.pi`. Nothing is executed. Raises ValueError for anything else."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        pass
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        try:
            return kind(literal(item) for item in node.elts)
        except TypeError as error:
            raise ValueError(str(error)) from error
    name = ast.unparse(node)
    if name in CONSTANTS:
        return CONSTANTS[name]
    try:
        if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
            return SIGNS[type(node.op)](literal(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            left, right = literal(node.left), literal(node.right)
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if not numbers and not isinstance(node.op, ast.Add | ast.Mult | ast.Sub):
                raise ValueError("no formatting here")
            if not numbers and _size(left) * _size(right) > LARGEST:
                raise ValueError("too large")
            if isinstance(node.op, ast.Pow) and (_size(right) > 1_000 or _size(left) > LARGEST):
                raise ValueError("too large")
            return ARITHMETIC[type(node.op)](left, right)
        if isinstance(node, ast.Call) and not node.keywords:
            made = MAKERS.get(ast.unparse(node.func))
            if made is not None:
                return made(*(literal(argument) for argument in node.args))
    except (TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
    raise ValueError(f"{name[:80]} is not made of constants")


def _size(value: Any) -> float:
    """A number's magnitude, or a sequence's length."""
    if isinstance(value, int | float):
        return abs(value)
    return len(value) if hasattr(value, "__len__") else 0
