"""New ratios against the committed ones: `benchmarks/run.py all | python benchmarks/compare.py`.

A line each: name, committed ratio, new ratio, verdict. `worse` is a target that was met and no
longer is, or an interval that lies wholly on the bad side of the committed one; the exit status is
then 1. `--write` puts the new lines into `baseline.jsonl`, others stay.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).parent / "baseline.jsonl"


def read(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By name; lines that are no JSON objects are other programs' talk."""
    found = {}
    for text in lines:
        if text.startswith("{"):
            row = json.loads(text)
            found[row["name"]] = row
    return found


def verdict(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    if old is None:
        return "new"
    if old.get("ok") and not new.get("ok", True):
        return "worse: it met its target"
    low, high = new["interval"]
    more_is_better = not str(new.get("target", ">=")).startswith("<=")
    if (high < old["interval"][0]) if more_is_better else (low > old["interval"][1]):
        return "worse"
    if (low > old["interval"][1]) if more_is_better else (high < old["interval"][0]):
        return "better"
    return "the same"


def main(arguments: list[str]) -> int:
    committed = read(BASELINE.read_text().splitlines()) if BASELINE.exists() else {}
    measured = read(sys.stdin)
    if not measured:
        print("nothing to compare: pipe the lines of benchmarks/run.py into this", file=sys.stderr)
        return 2
    verdicts = {name: verdict(committed.get(name), row) for name, row in measured.items()}
    for name, row in measured.items():
        before = committed.get(name, {}).get("ratio", "-")
        target = f"{row['target']} {'ok' if row['ok'] else 'MISSED'}" if "target" in row else ""
        print(f"{name:<16} {before!s:>9} -> {row['ratio']!s:<9} {target:<16} {verdicts[name]}")
    if "--write" in arguments:
        rows = committed | measured
        text = "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows))
        BASELINE.write_text(text, encoding="utf-8")
    return int(any(found.startswith("worse") for found in verdicts.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
