"""Programs written by the model, graded by tests in a sandbox."""

from collections.abc import Sequence

from rewards.programs.grade import grade, program_in
from rewards.programs.sandbox import Limits, best_tier
from rewards.programs.suite import suite_of
from rewards.score import Verdict


def code(
    completion: str,
    answer: str,
    *,
    seconds: float = 4.0,
    total_seconds: float = 8.0,
    memory_mib: int = 1024,
    packages: Sequence[str] = (),
    partial: bool = False,
    allow_unsandboxed: bool = False,
) -> Verdict:
    """1.0 when the completion's program passes all tests of the reference answer, else 0.0; with
    `partial`, the share that it passes. `rewards/programs/suite.py:suite_of` has the forms of
    tests; each test may take `seconds`, all of them `total_seconds`.

    Raises ValueError when the reference holds no tests, RuntimeError when this machine gives no
    sandbox.

    >>> code("```python\\nprint(int(input()) + 1)\\n```", '[{"stdin": "1", "stdout": "2"}]').value
    1.0
    """
    tests = suite_of(answer)
    report = grade(
        program_in(completion),
        tests,
        tier=best_tier(allow_unsandboxed=allow_unsandboxed),
        limits=Limits(seconds=seconds, memory_mib=memory_mib),
        packages=tuple(packages),
        seconds=total_seconds,
        stop_early=not partial,
    )
    passed = report.passed / report.tests if partial else float(report.passed == report.tests)
    return Verdict(
        value=passed if report.outcome == "scored" else 0.0,
        outcome=report.outcome,
        note=report.reason,
        parts={"passed": report.passed / report.tests, "weak_tests": float(report.weak)},
    )
