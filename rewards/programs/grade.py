"""A program's verdict: every test in the sandbox, every comparison out here."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answers import fenced, said
from rewards.programs.frames import Malformed, Test
from rewards.programs.sandbox import Broken, Ended, Late, Limits, Sandbox, Tier
from rewards.score import Outcome

PYTHON = ("python", "python3", "py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of one program."""

    outcome: Outcome
    passed: int
    tests: int
    reason: str
    """Of the first test that did not pass; "" when all did."""
    weak: int
    """Tests passed in the weaker mode, where the program could have reached what was expected."""
    seconds: float
    """Wall clock, the sandbox's start and end included."""
    cpu: float
    memory_mib: float
    tier: Tier
    digest: str
    """SHA-256 of the program."""


def program_in(completion: str) -> str:
    """The program in a completion: the last fenced block labelled Python behind the last
    `</think>`; without a label anywhere, the last fenced block; else the whole of what is there.

    >>> program_in("<think>```python\\nno\\n```</think>So:\\n```python\\nprint(1)\\n```\\nDone.")
    'print(1)\\n'
    """
    rest = said(completion)
    return fenced(rest, PYTHON) or rest


def grade(
    program: str,
    tests: Sequence[Test],
    *,
    tier: Tier,
    limits: Limits,
    packages: tuple[str, ...] = (),
    seconds: float,
    stop_early: bool = True,
) -> Report:
    """Run the tests in order, each in a process of its own, all within `seconds`.

    Raises RuntimeError when the sandbox does not start: that is our failure, not the program's.
    """
    started = time.monotonic()
    passed = weak = 0
    outcome: Outcome = "scored"
    reason = ""
    cpu = memory = 0.0
    with Sandbox(program, tier=tier, limits=limits, packages=packages) as sandbox:
        deadline = time.monotonic() + seconds  # the sandbox's own start is not the program's
        for number, test in enumerate(tests):
            left = deadline - time.monotonic()
            if left <= 0:
                outcome, reason = "timeout", f"all tests together took {seconds:g} s"
                break
            try:
                ended = sandbox.run(test.request, min(left, limits.seconds))
                cpu, memory = cpu + ended.cpu, max(memory, ended.memory_mib)
                fault = "" if ended.ended == "by itself" and test.passed(ended) else _why(ended)
            except (Malformed, Broken) as error:
                outcome = "timeout" if isinstance(error, Late) else "tampered"
                reason = f"test {number}: {error}"
                break
            if not fault:
                passed, weak = passed + 1, weak + test.weak
                continue
            reason = reason or f"test {number} ({test.label}): {fault}"
            if ended.ended == "timeout":
                outcome = "timeout"
            if stop_early or outcome != "scored":
                break
    return Report(
        outcome=outcome,
        passed=passed,
        tests=len(tests),
        reason=reason,
        weak=weak,
        seconds=time.monotonic() - started,
        cpu=cpu,
        memory_mib=memory,
        tier=tier,
        digest=hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest(),
    )


def _why(ended: Ended) -> str:
    if ended.ended == "timeout":
        return f"it ran for more than {ended.seconds:.1f} s"
    if ended.ended != "by itself":
        return f"over its limit of {ended.ended}"
    if ended.status < 0:
        return f"killed by signal {-ended.status}"
    if ended.status:
        last = ended.stderr.strip().splitlines()
        return f"exit status {ended.status}: {last[-1][:200] if last else ''}"
    return f"wrong answer: {ended.stdout[:80].decode('utf-8', 'replace')!r}"
