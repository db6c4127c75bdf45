"""Who worked when: `timeline.jsonl`, a line per stretch of work, and from it who waited.

{"who": "sampler/0", "what": "sampling", "at": 1763790000.123, "seconds": 2.5}
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.files import add_lines, read_lines, whole_lines
from cluster.pool import Pool

TIMELINE = "timeline.jsonl"
SHORTEST = 1e-3
"""Seconds; nobody sees shorter stretches, and there are many."""


class Timeline:
    """`pools` come with a word for what their members do while they have something to do."""

    def __init__(self, folder: Path, pools: Sequence[tuple[str, Pool]]) -> None:
        self._path = folder / TIMELINE
        whole_lines(self._path)
        self._pools = pools
        self._waiting: list[dict[str, Any]] = []
        self._learner = 0.0
        """Seconds that it has worked since the last flush"""
        self._flushed = time.monotonic()
        self._epoch = time.time() - time.monotonic()
        """Of the monotonic clock; the wall clock is asked once, so that no line goes back."""

    def worked(self, what: str, started: float, ended: float) -> None:
        """The learner; by the monotonic clock."""
        self._learner += ended - max(started, self._flushed)
        self._add("learner", what, started, ended)

    def _add(self, who: str, what: str, started: float, ended: float) -> None:
        if ended - started >= SHORTEST:
            at = round(self._epoch + started, 4)
            line = {"who": who, "what": what, "at": at, "seconds": round(ended - started, 4)}
            self._waiting.append(line)

    def flush(self) -> dict[str, float]:
        """Write what was done since the last call; of each role, the share of that time in which it
        had nothing to do."""
        now = time.monotonic()
        passed = max(now - self._flushed, 1e-9)
        idle = {"idle/learner": 1 - self._learner / passed} if self._learner else {}
        for what, pool in self._pools:
            shares = []
            for index, stretches in pool.worked(now).items():
                for started, ended in stretches:
                    self._add(f"{pool.name}/{index}", what, started, ended)
                shares.append(sum(ended - started for started, ended in stretches) / passed)
            if shares:
                idle[f"idle/{pool.name}"] = 1 - sum(shares) / len(shares)
                idle[f"idle/{pool.name}_most"] = 1 - min(shares)
        self._flushed, self._learner = now, 0.0
        try:
            add_lines(self._path, self._waiting)
            self._waiting = []
        except OSError:  # the disk is full, which others say; the next flush tries again
            del self._waiting[:-10_000]
        return {role: min(max(share, 0.0), 1.0) for role, share in idle.items()}


def read_timeline(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / TIMELINE)


def chrome_trace(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for Perfetto and chrome://tracing: complete events, in microseconds."""
    tracks = {who: number for number, who in enumerate(sorted({line["who"] for line in lines}))}
    named = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": who}}
        for who, tid in tracks.items()
    ]
    events = [
        {
            "ph": "X",
            "name": line["what"],
            "pid": 1,
            "tid": tracks[line["who"]],
            "ts": round(line["at"] * 1e6),
            "dur": round(line["seconds"] * 1e6),
        }
        for line in lines
    ]
    return {"traceEvents": named + events, "displayTimeUnit": "ms"}
