"""Numbers of a step: computed from its groups, written to `metrics.jsonl` and TensorBoard.

The names are fixed; docs/operations.md says what each one means.
"""

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from cluster.aliases import aliases
from cluster.config import LoggingConfig
from cluster.files import append, read_lines, whole_lines
from cluster.trackers import TRACKERS, Aside, Prometheus
from cluster.window import Window
from rewards.score import FAULTS
from rollout import ScoredGroup
from rollout.types import NO_POLICY


def describe(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards and lengths of the groups of one step."""
    completions = [c for g in groups for c in g.group.completions]
    scores = [s for g in groups for s in g.scores]
    rewards = [s.reward for s in scores if s.reward is not None]
    lengths = [len(c.token_ids) for c in completions]
    metrics = {
        "reward/verifier_errors": float(sum(s.outcome == "unscorable" for s in scores)),
        "reward/timeouts": float(sum(s.outcome == "timeout" for s in scores)),
        "reward/tampered": float(sum(s.outcome == "tampered" for s in scores)),
        "rollout/length": _mean(lengths),
        "rollout/length_max": float(max(lengths, default=0)),
        "rollout/group_size": len(completions) / max(len(groups), 1),
        "rollout/truncated": _mean([c.finish_reason == "length" for c in completions]),
        "rollout/uniform_groups": _mean([g.is_uniform for g in groups]),
        "rollout/all_zero_groups": _mean([_all_at(g, 0.0) for g in groups]),
        "rollout/all_one_groups": _mean([_all_at(g, 1.0) for g in groups]),
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
        faults = [s.faults.get(name) for s in scores if s.faults is not None]
        for fault in FAULTS if faults else ():
            metrics[f"reward/{name}/{fault}"] = float(faults.count(fault))
    for name in sorted({name for s in scores for name in s.parts}):
        metrics[f"reward/{name}"] = _mean([s.parts[name] for s in scores if name in s.parts])
    return metrics


def _all_at(group: ScoredGroup, value: float) -> bool:
    """Whether the first verifier, by which a run is judged, gave all siblings this value."""
    firsts = [next(iter(s.parts.values())) for s in group.scores if s.parts]
    return bool(firsts) and all(first == value for first in firsts)


def staleness(groups: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """How many versions older than the policy in training (`version`) the oldest token of each
    group is. Demonstrations have none."""
    oldest = [g.group.oldest_version for g in groups]
    ages = [version - v for v in oldest if v != NO_POLICY] or [0]
    shares = {f"schedule/staleness/{age}": ages.count(age) / len(ages) for age in sorted({*ages})}
    return {
        "schedule/staleness_mean": _mean(ages),
        "schedule/staleness_max": float(max(ages)),
        **shares,
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

    def __init__(self, folder: Path, run: str, config: LoggingConfig) -> None:
        path = folder / METRICS
        whole_lines(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._late = b""
        self._aliases = config.aliases
        self._trackers = [
            Aside(name, functools.partial(TRACKERS[name], folder, run)) for name in config.trackers
        ]
        if ray.is_initialized():
            self._trackers.append(Aside("Prometheus", lambda: Prometheus(run)))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._trackers:
            metrics = {**metrics, "faults/rows_lost": float(sum(t.lost for t in self._trackers))}
        metrics = metrics | aliases(metrics, self._aliases)
        row = {"step": step, "time": round(time.time(), 3), **metrics}
        self._late += json.dumps(row).encode() + b"\n"
        self._write_late()
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def _write_late(self) -> None:
        with contextlib.suppress(OSError):  # with the next row, then
            append(self._file, self._late)
            self._late = b""

    @property
    def warning(self) -> str:
        """What trackers and the disk did not take."""
        told = [f"{t.name} lost {t.lost} rows of metrics: {t.why}" for t in self._trackers if t.why]
        if rows := self._late.count(b"\n"):
            told.append(f"{METRICS} lacks {rows} rows: no room on the disk")
        return "; ".join(told)

    def close(self) -> None:
        self._write_late()
        os.close(self._file)
        for tracker in self._trackers:
            tracker.close()
