"""How benchmarks are held against what was committed; the figures themselves are no tests."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import compare  # noqa: E402


def row(name: str, ratio: float, target: str = "", spread: float = 0.01) -> dict:
    found: dict = {"name": name, "ratio": ratio, "interval": [ratio - spread, ratio + spread]}
    if target:
        sense, bound = target.split()
        ok = ratio >= float(bound) if sense == ">=" else ratio <= float(bound)
        found |= {"target": target, "ok": ok}
    return found


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (row("a", 0.99, ">= 0.98"), row("a", 0.97, ">= 0.98"), "worse: it met its target"),
        (row("a", 0.50, ">= 0.98"), row("a", 0.40, ">= 0.98"), "worse"),
        (row("a", 0.50, ">= 0.98"), row("a", 0.60, ">= 0.98"), "better"),
        (row("a", 30.0, "<= 50"), row("a", 40.0, "<= 50"), "worse"),
        (row("a", 30.0, "<= 50"), row("a", 20.0, "<= 50"), "better"),
        (row("a", 0.995, ">= 0.98"), row("a", 0.990, ">= 0.98"), "the same"),
        (None, row("a", 1.0), "new"),
    ],
)
def test_a_verdict_needs_intervals_apart(old: dict | None, new: dict, verdict: str):
    assert compare.verdict(old, new) == verdict


def test_new_lines_are_written_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    baseline = tmp_path / "baseline.jsonl"
    baseline.write_text("".join(json.dumps(row(name, 0.9)) + "\n" for name in "ab"))
    monkeypatch.setattr(compare, "BASELINE", baseline)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"some talk\n{json.dumps(row('b', 0.5))}\n"))
    assert compare.main(["--write"]) == 1, "b is worse"
    assert "worse" in capsys.readouterr().out
    kept = compare.read(baseline.read_text().splitlines())
    assert {name: found["ratio"] for name, found in kept.items()} == {"a": 0.9, "b": 0.5}


def test_every_committed_line_is_of_a_benchmark_that_is_there():
    names = compare.read(compare.BASELINE.read_text().splitlines())
    listed = subprocess.run(
        [sys.executable, "benchmarks/run.py", "B99"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 2 and "there are B1" in listed.stderr
    known = listed.stderr.partition("there are ")[2].strip().split(", ")
    assert {name.partition("_")[0] for name in names} <= {name.partition("_")[0] for name in known}
