"""Assertions, split: the call goes into the sandbox, the expected literal stays outside."""

import ast
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rewards.programs.frames import Other, Test

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
