"""Numbers of a step: computed from its groups, written to `metrics.jsonl` and TensorBoard.

The names are fixed; docs/operations.md says what each one means.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.files import read_lines, whole_lines
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
    """One JSON line per step, whatever else listens. A TensorBoard that fails is dropped with a
    warning; it never stops a run."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        path = folder / METRICS
        whole_lines(path)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # until close
        self._board: Any = None
        self.warning = ""
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
            except ImportError as error:
                self.warning = f"no TensorBoard events: {error}"

    def write(self, step: int, metrics: dict[str, float]) -> None:
        row = {"step": step, "time": round(time.time(), 3), **metrics}
        self._file.write(json.dumps(row) + "\n")
        if self._board is None:
            return
        try:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            self.warning = f"TensorBoard events stop at step {step}: {error}"
            self._board = None

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
