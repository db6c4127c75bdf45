"""`python -m rewards.programs FOLDER`: run every program of a folder through the grader.

One JSON line per program: outcome, reward, reason, wall, tier. The tests of `NAME.py` stand in
`NAME.json`, else in a line `# tests: [...]` of the program, else in the folder's `tests.json` (the
forms are those of `suite_of`). A program without tests is only run, on empty input: reward null.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from rewards.programs.frames import Test
from rewards.programs.grade import Report, grade
from rewards.programs.sandbox import TIERS, Limits, Tier, Unavailable, best_tier, why_not
from rewards.programs.suite import suite_of

HEADER = "# tests:"


def suite_for(path: Path) -> list[Test]:
    """The tests of a program; none where nothing names any. Raises ValueError."""
    own, shared = path.with_suffix(".json"), path.parent / "tests.json"
    if own.is_file():
        return suite_of(own.read_text(encoding="utf-8"))
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(HEADER):
            return suite_of(line.removeprefix(HEADER).strip())
    return suite_of(shared.read_text(encoding="utf-8")) if shared.is_file() else []


def run(path: Path, tier: Tier, limits: Limits, packages: tuple[str, ...], seconds: float) -> dict:
    """The line of one program."""
    tests = suite_for(path)
    program = path.read_text(encoding="utf-8", errors="surrogateescape")
    only_run = Test(request={"stdin": ""}, accepts=lambda _: True, label="no tests")
    report = grade(
        program, tests or [only_run], tier=tier, limits=limits, packages=packages, seconds=seconds
    )
    return {"program": path.name, **line_of(report, has_tests=bool(tests))}


def line_of(report: Report, *, has_tests: bool) -> dict:
    passed = report.outcome == "scored" and report.passed == report.tests
    reason = report.reason or ("all tests pass" if has_tests else "no tests: it ran to its end")
    return {
        "outcome": report.outcome,
        "reward": float(passed) if has_tests else None,
        "reason": reason,
        "wall": round(report.seconds, 3),
        "cpu": round(report.cpu, 3),
        "memory_mib": round(report.memory_mib, 1),
        "passed": report.passed if has_tests else 0,
        "tests": report.tests if has_tests else 0,
        "tier": report.tier,
        "sha256": report.digest,
    }


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 1 no sandbox."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.programs", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tier", choices=TIERS, help="default: the strongest of this machine")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one test")
    parser.add_argument("--total-seconds", type=float, default=8.0, help="of all tests")
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--packages", default="", help="that programs may import: numpy,scipy")
    parser.add_argument("--allow-unsandboxed-code", action="store_true")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    programs = sorted(folder.glob("*.py")) if folder.is_dir() else [folder]
    if not programs or not programs[0].is_file():
        print(f"error: {folder} is no folder with programs (*.py)", file=sys.stderr)
        return 2
    try:
        tier = arguments.tier or best_tier(allow_unsandboxed=arguments.allow_unsandboxed_code)
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if tier == "none" and not arguments.allow_unsandboxed_code:
        print("error: tier none needs --allow-unsandboxed-code", file=sys.stderr)
        return 1
    if reason := why_not(tier):
        print(f"error: no {tier} sandbox here: {reason}", file=sys.stderr)
        return 1
    limits = Limits(seconds=arguments.seconds, memory_mib=arguments.memory_mib)
    packages = tuple(filter(None, arguments.packages.split(",")))
    outcomes: Counter[str] = Counter()
    for path in programs:
        try:
            line = run(path, tier, limits, packages, arguments.total_seconds)
        except (ValueError, RuntimeError) as error:
            line = {"program": path.name, "outcome": "unscorable", "reward": None}
            line |= {"reason": str(error), "wall": 0.0, "tier": tier}
        outcomes[line["outcome"]] += 1
        print(json.dumps(line), flush=True)
    print(", ".join(f"{count} {name}" for name, count in outcomes.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
