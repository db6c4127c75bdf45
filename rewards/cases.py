"""`python -m rewards.cases FILE`: score a file of cases, print each miss and a count last.

One JSON object per line: `gold` (the reference), `prediction` (a completion), `expected` (bool).
Each case runs in a killable child, like in a run: one that hangs is a miss and costs its deadline.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewards.config import RewardConfig, VerifierConfig
from rewards.score import Attempt, Score, Task
from rewards.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    line: int
    gold: str
    prediction: str
    expected: bool


def read(path: Path) -> list[Case]:
    """Raises ValueError naming the line that is no case."""
    cases = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            cases.append(
                Case(
                    line=number,
                    gold=str(row["gold"]),
                    prediction=str(row["prediction"]),
                    expected=bool(row["expected"]),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no object with gold, prediction and expected: {error!r}"
            ) from error
    if not cases:
        raise ValueError(f"{path} holds no cases")
    return cases


def scored(cases: list[Case], verifier: str, timeout: float) -> Iterator[tuple[Case, Score]]:
    scorer = Scorer(RewardConfig(verifiers={verifier: VerifierConfig()}, timeout=timeout))
    try:
        for case in cases:
            attempt = Attempt(text=case.prediction, num_tokens=0, truncated=False)
            yield case, scorer.score(Task(answer=case.gold), [attempt])[0]
    finally:
        scorer.close()


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 scored (whatever the count), 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.cases", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--verifier", default="math", help="a built-in one or module:function")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one case")
    arguments = parser.parse_args(argv)
    try:
        cases = read(arguments.file)
        misses = 0
        for case, score in scored(cases, arguments.verifier, arguments.timeout):
            if score.outcome == "scored" and (score.reward == 1.0) == case.expected:
                continue
            misses += 1
            found = score.outcome if score.outcome != "scored" else f"{score.reward:g}"
            print(
                f"miss, line {case.line}: expected {float(case.expected):g}, got {found}"
                f"{f' ({score.note})' * bool(score.note)}: gold {case.gold!r}, prediction "
                f"{case.prediction!r}"
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(cases) - misses} of {len(cases)} right, {misses} missed ({arguments.verifier})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
