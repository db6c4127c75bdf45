"""What is read of run folders: nothing is written, and a folder that is damaged shows what is left
of it."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from cluster import logprobs
from cluster.files import read_lines
from cluster.ledger import table_path
from cluster.metrics import read_metrics
from rollout.schema import read_table

compute: Any = pyarrow.compute  # its functions are made when it is imported
SORTS = ("ticket", "reward", "spread", "length")
MOST_FOUND = 500
"""Completions that a search through a whole run shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which completions; empty fields let all pass."""

    text: str = ""
    """In the completion or the prompt, small and capital letters alike"""
    outcome: str = ""
    low: float | None = None
    """Least reward"""
    high: float | None = None

    def __bool__(self) -> bool:
        return self != Filter()

    def of(self, table: pa.Table) -> pa.Table:
        """The rows that pass; a bound on the reward lets none pass that have no reward."""
        masks = []
        if self.text:
            columns = table["completion"], table["prompt"]
            masks.append(compute.or_(*(_has(column, self.text) for column in columns)))
        if self.outcome:
            masks.append(compute.equal(table["reward_outcome"], self.outcome))
        if self.low is not None:
            masks.append(compute.greater_equal(table["reward"], self.low))
        if self.high is not None:
            masks.append(compute.less_equal(table["reward"], self.high))
        return table.filter(functools.reduce(compute.and_, masks)) if masks else table


def _has(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    return compute.match_substring(column, text, ignore_case=True)


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The completions of one prompt in one step, as rows of the table."""

    ticket: int
    step: int
    rows: list[dict[str, Any]]

    @property
    def rewards(self) -> list[float]:
        return [row["reward"] for row in self.rows if row["reward"] is not None]

    @property
    def mean(self) -> float:
        return sum(self.rewards) / len(self.rewards) if self.rewards else float("nan")

    @property
    def spread(self) -> float:
        return max(self.rewards) - min(self.rewards) if self.rewards else 0.0

    @property
    def length(self) -> float:
        return sum(len(row["completion_ids"]) for row in self.rows) / len(self.rows)


class RunFolder:
    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder = folder
        self.name = name or folder.name

    @staticmethod
    def is_one(folder: Path) -> bool:
        return (folder / "config.json").is_file()

    @property
    def steps(self) -> list[int]:
        """Whose tables are there."""
        found = (self.folder / "rollouts").glob("[0-9]*.arrow")
        return sorted(int(path.stem) for path in found)

    def table(self, step: int) -> pa.Table:
        """With the column `learner_logprobs` where they were recorded. Raises ValueError when it is
        not there, or no table."""
        path = table_path(self.folder / "rollouts", step)
        if not path.is_file():
            raise ValueError(f"{self.name} has no table of step {step}")
        table, noted = _read(path, path.stat().st_mtime_ns), logprobs.read(self.folder, step)
        if noted is None:
            return table
        lengths = [compute.list_value_length(each) for each in (noted, table["completion_ids"])]
        # Otherwise they are of a table that another has replaced since.
        return table.append_column(logprobs.COLUMN, noted) if lengths[0] == lengths[1] else table

    def groups(
        self, step: int, wanted: Filter, *, sort: str = "ticket", falling: bool = False
    ) -> list[tuple[int, pa.Table]]:
        """(ticket, rows that pass) of a step, in that order."""
        table = wanted.of(self.table(step))
        tickets = table["group_id"].to_pylist()
        starts = [i for i, t in enumerate(tickets) if not i or tickets[i - 1] != t]
        ends = [*starts[1:], len(tickets)]
        found = [(tickets[a], table.slice(a, b - a)) for a, b in zip(starts, ends, strict=False)]
        if sort != "ticket":
            found.sort(key=lambda each: _order(each[1], sort), reverse=falling)
        return found[::-1] if sort == "ticket" and falling else found

    def search(self, wanted: Filter) -> Iterator[GroupRows]:
        """Through all steps, the newest first."""
        for step in reversed(self.steps):
            try:
                found = self.groups(step, wanted)
            except ValueError:  # a damaged table; its own page says so
                continue
            for ticket, rows in found:
                yield GroupRows(ticket, step, rows.to_pylist())

    def history(self, prompt: str) -> list[GroupRows]:
        """What was answered to this prompt, from the first step to the last."""
        found = []
        for step in self.steps:
            try:
                table = self.table(step)
            except ValueError:
                continue
            rows = table.filter(compute.equal(table["prompt_id"], prompt))
            for ticket in rows["group_id"].unique().to_pylist():
                mine = rows.filter(compute.equal(rows["group_id"], ticket))
                found.append(GroupRows(ticket, step, mine.to_pylist()))
        return found

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of training, each step once: the later row holds."""
        rows = {int(row["step"]): row for row in read_metrics(self.folder) if "learner/lr" in row}
        return [rows[step] for step in sorted(rows)]

    def row(self, step: int) -> dict[str, float]:
        """Of training; empty where there is none."""
        return next((row for row in self.metrics if row["step"] == step), {})

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "evaluations.jsonl")

    @property
    def faults(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "faults.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())["config"]

    @property
    def result(self) -> dict[str, Any]:
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        """The text of each token; None where the tokenizer is not on this machine."""
        for place in (self.folder / "model", Path(self.config["model"]["path"] or "absent")):
            if (place / "tokenizer_config.json").is_file():
                return _tokenizer(str(place)).batch_decode([[i] for i in ids])
        return None


class Runs:
    """The run folders at or below a folder. Raises ValueError when there is none."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        if not self.all():
            raise ValueError(f"{root} is no run folder and has none below it")

    def all(self) -> dict[str, RunFolder]:
        """By name, as they are now."""
        if RunFolder.is_one(self._root):
            return {self._root.name: RunFolder(self._root)}
        found = sorted(path.parent for path in self._root.glob("**/config.json"))
        runs = [folder for folder in found if (folder / "metrics.jsonl").is_file()]
        names = [str(folder.relative_to(self._root)) for folder in runs]
        return {name: RunFolder(f, name) for name, f in zip(names, runs, strict=True)}

    def run(self, name: str) -> RunFolder:
        """Raises ValueError for one that is not there."""
        try:
            return self.all()[name]
        except KeyError:
            raise ValueError(f"no run {name!r} in {self._root}") from None


def _order(rows: pa.Table, sort: str) -> float:
    if sort == "length":
        return sum(map(len, rows["completion_ids"].to_pylist())) / len(rows)
    rewards = [reward for reward in rows["reward"].to_pylist() if reward is not None]
    if not rewards:
        return float("-inf")
    return max(rewards) - min(rewards) if sort == "spread" else sum(rewards) / len(rewards)


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> pa.Table:
    return read_table(path)


@functools.lru_cache(maxsize=4)
def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place)
