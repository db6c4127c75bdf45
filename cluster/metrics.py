"""Numbers of a step: computed from its groups, written to `metrics.jsonl` and TensorBoard.

The names are fixed; docs/operations.md says what each one means.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.files import read_lines, whole_lines
from cluster.trackers import Aside, TensorBoard
from cluster.window import Window
from rollout import ScoredGroup
from rollout.types import NO_POLICY


def describe(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards and lengths of the groups of one step."""
    completions = [c for g in groups for c in g.group.completions]
    scores = [s for g in groups for s in g.scores]
    rewards = [s.reward for s in scores if s.reward is not None]
    metrics = {
        "reward/verifier_errors": float(sum(s.outcome == "unscorable" for s in scores)),
        "reward/timeouts": float(sum(s.outcome == "timeout" for s in scores)),
        "reward/tampered": float(sum(s.outcome == "tampered" for s in scores)),
        "rollout/length": _mean([len(c.token_ids) for c in completions]),
        "rollout/group_size": len(completions) / max(len(groups), 1),
        "rollout/truncated": _mean([c.finish_reason == "length" for c in completions]),
        "rollout/uniform_groups": _mean([g.is_uniform for g in groups]),
    }
    if rewards:
        metrics["reward/mean"] = _mean(rewards)
        metrics["reward/std"] = math.sqrt(
            _mean([(r - metrics["reward/mean"]) ** 2 for r in rewards])
        )
    greedy = [g.greedy_reward for g in groups if g.greedy_reward is not None]
    if greedy:
        metrics["reward/greedy"] = _mean(greedy)
    if any(g.steps for g in groups):
        metrics["reward/judged_steps"] = _mean([len(s) for g in groups for s in g.steps])
    for name in sorted({name for s in scores for name in s.seconds}):
        spent = [s.seconds[name] for s in scores if name in s.seconds]
        metrics[f"reward/{name}/seconds"] = _mean(spent)
    for name in sorted({name for s in scores for name in s.parts}):
        metrics[f"reward/{name}"] = _mean([s.parts[name] for s in scores if name in s.parts])
    return metrics


def staleness(groups: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """How many versions older than the policy in training (`version`) the oldest token of each
    group is. Demonstrations have none."""
    oldest = [g.group.oldest_version for g in groups]
    ages = [version - v for v in oldest if v != NO_POLICY] or [0]
    return {
        "schedule/staleness_mean": _mean(ages),
        "schedule/staleness_max": float(max(ages)),
    }


def flight(window: Window) -> dict[str, float]:
    return {
        "schedule/in_flight": float(window.in_flight),
        "schedule/discarded": float(window.discarded),
        "schedule/went_round": float(window.went_round),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows that a run has written so far."""
    return read_lines(folder / METRICS)


class MetricsWriter:
    """One JSON line per step, and the same to each tracker, which may do with it what it likes. A
    line for which the disk has no room is written with the next one."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        path = folder / METRICS
        whole_lines(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._late = b""
        self._trackers: list[Aside] = []
        if tensorboard:
            self._trackers.append(Aside("TensorBoard", lambda: TensorBoard(folder)))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._trackers:
            metrics = {**metrics, "faults/rows_lost": float(sum(t.lost for t in self._trackers))}
        row = {"step": step, "time": round(time.time(), 3), **metrics}
        self._late += json.dumps(row).encode() + b"\n"
        self._late = _append(self._file, self._late)
        for tracker in self._trackers:
            tracker.write(step, metrics)

    @property
    def warning(self) -> str:
        """What trackers and the disk did not take."""
        told = [f"{t.name} lost {t.lost} rows of metrics: {t.why}" for t in self._trackers if t.why]
        if rows := self._late.count(b"\n"):
            told.append(f"{METRICS} lacks {rows} rows: no room on the disk")
        return "; ".join(told)

    def close(self) -> None:
        self._late = _append(self._file, self._late)
        os.close(self._file)
        for tracker in self._trackers:
            tracker.close()


def _append(file: int, lines: bytes) -> bytes:
    """Whole lines or nothing; what is still to be written."""
    size = os.fstat(file).st_size
    try:
        if os.write(file, lines) == len(lines):
            return b""
    except OSError:
        pass
    os.ftruncate(file, size)
    return lines
