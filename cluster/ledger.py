"""What was trained: one line per optimizer step, and each step's table on disk before it is
trained.

`ledger.jsonl` is only ever appended to while a run goes on. A run that resumes from a checkpoint
puts the lines behind it aside (`ledger.jsonl.1`, `.2`, ...): those steps are trained again, from
the same prompts.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.files import free_name, replace_text, whole_lines
from rollout import ScoredGroup
from rollout.schema import to_groups, write_table


class Ledger:
    def __init__(self, folder: Path, *, keep_rollouts: bool) -> None:
        self._path = folder / "ledger.jsonl"
        self._rollouts = folder / "rollouts"
        self._keep = keep_rollouts
        if keep_rollouts:
            self._rollouts.mkdir(parents=True, exist_ok=True)

    def record(self, step: int, table: pa.Table) -> None:
        """Write-ahead: the step's table is on disk before the learner sees it."""
        if self._keep:
            write_table(table, table_path(self._rollouts, step))

    def commit(self, step: int, groups: list[ScoredGroup]) -> None:
        """The optimizer step that made version `step` trained these groups."""
        line = {
            "step": step,
            "tickets": [g.group.ticket for g in groups],
            "prompts": [g.group.prompt.id for g in groups],
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def rewind(self, step: int) -> int:
        """Put aside what came after `step`, lines and tables; how many steps that were."""
        whole_lines(self._path)  # a line without its end committed nothing
        lines = self.lines()
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            shutil.copy2(self._path, free_name(self._path))
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        stale = [p for p in self._rollouts.glob("[0-9]*.arrow") if int(p.stem) > step]
        for path in stale:  # a replay must not mix what was trained with what was given up
            path.rename(free_name(path.with_suffix(".arrow.superseded")))
        return len(lines) - len(kept)


def table_path(rollouts: Path, step: int) -> Path:
    """Step 123 is the update that makes version 123."""
    return rollouts / f"{step:06d}.arrow"


class Recording:
    """The groups of a recorded run, in the order in which they were trained: `at(ticket)`.

    Raises ValueError when the folder holds no tables, a step is missing, or a table has another
    number of groups than `groups_per_step`.
    """

    def __init__(self, folder: Path, groups_per_step: int) -> None:
        rollouts = folder / "rollouts" if (folder / "rollouts").is_dir() else folder
        self._paths = sorted(rollouts.glob("[0-9]*.arrow"))
        if not self._paths:
            raise ValueError(f"--replay {folder}: no recorded tables (NNNNNN.arrow) there")
        for number, path in enumerate(self._paths, start=1):
            if path != table_path(rollouts, number):
                raise ValueError(f"--replay {folder}: step {number} is missing, found {path.name}")
        self._per_step = groups_per_step
        self._loaded: tuple[int, list[ScoredGroup]] = (-1, [])

    def __len__(self) -> int:
        """Groups recorded."""
        return len(self._paths) * self._per_step

    @property
    def steps(self) -> int:
        return len(self._paths)

    def at(self, ticket: int) -> ScoredGroup:
        from rollout.schema import read_table

        step, position = divmod(ticket, self._per_step)
        if self._loaded[0] != step:
            groups = to_groups(read_table(self._paths[step]))
            if len(groups) != self._per_step:
                raise ValueError(
                    f"{self._paths[step]} holds {len(groups)} groups, "
                    f"schedule.groups_per_step={self._per_step}"
                )
            self._loaded = (step, groups)
        return self._loaded[1][position]
