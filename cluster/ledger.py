"""What was trained: one line per optimizer step, and each step's table on disk before it is
trained.

A line names its table by digest and says what has become of every ticket drawn so far; its own
checksum tells a line that was written whole. `ledger.jsonl` is only ever appended to while a run
goes on. What a checkpoint does not hold yet is replayed from the tables, without sampling anything
again. Where one of them is missing or damaged, the lines from there on are put aside
(`ledger.jsonl.1`, `.2`, ...) and those steps are sampled and trained again, from the same prompts.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
from blake3 import blake3

from cluster import logprobs
from cluster.files import free_name, replace_text, whole_lines
from cluster.window import WindowState
from rollout import ScoredGroup
from rollout.schema import Sealed, read_table, seal, to_groups, write_sealed

LEDGER = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class Commit:
    """The optimizer step that made version `step`."""

    step: int
    tickets: list[int]
    """Of the groups that it trained"""
    prompts: list[str]
    table: str
    """Digest of the recorded table"""
    window: WindowState
    """What became of all other tickets, at that moment."""

    def line(self) -> str:
        content = json.dumps(asdict(self))
        return f'{content[:-1]}, "sum": "{_sum(content)}"}}\n'

    @classmethod
    def parse(cls, line: str) -> "Commit":
        """Raises ValueError for a line that is damaged."""
        content, mark, check = line.rstrip("\n").rpartition(', "sum": "')
        if not mark or check != f'{_sum(content + "}")}"}}':
            raise ValueError(f"the line does not match its checksum: {line[:60]!r}...")
        fields = json.loads(content + "}")
        return cls(**fields | {"window": WindowState.of(fields["window"])})


def _sum(content: str) -> str:
    return blake3(content.encode()).hexdigest()[:16]


def conserved(trained: int, window: WindowState) -> bool:
    """Every ticket that was ever drawn is one of: trained, discarded, dropped, pending."""
    return window.next_ticket == (trained + window.discarded + window.dropped + len(window.pending))


def read_ledger(folder: Path) -> tuple[list[Commit], str]:
    """The commits of a run folder whose lines are whole, and what is wrong with the first that is
    not."""
    path = folder / LEDGER
    commits: list[Commit] = []
    wrong = ""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            commits.append(Commit.parse(line.decode()))
        except (ValueError, KeyError, TypeError) as error:
            wrong = wrong or f"{path}, line {number}: {error}"
    return commits, wrong


class Ledger:
    """`records=False` keeps no tables: nothing can be replayed then."""

    def __init__(self, folder: Path, *, records: bool = True) -> None:
        self._folder = folder
        self._path = folder / LEDGER
        self._rollouts = folder / "rollouts"
        self._records = records
        self._digest = ""
        whole_lines(self._path)  # a line without its end committed nothing
        self._trained = 0
        self.last: Commit | None = None
        if records:
            self._rollouts.mkdir(parents=True, exist_ok=True)

    def record(self, step: int, table: pa.Table) -> Sealed:
        """Write-ahead: the step's table is on disk before the learner sees it; the same bytes."""
        sealed = seal(table)
        self._digest = sealed.digest
        if self._records:
            path = table_path(self._rollouts, step)
            try:
                write_sealed(sealed, path)
            except OSError as error:
                raise self._cannot(step, path, error) from error
        return sealed

    def commit(self, step: int, groups: list[ScoredGroup], window: WindowState) -> None:
        """The optimizer step that made version `step` trained these groups. Raises RuntimeError
        when a prompt was lost, or drawn twice."""
        self._trained += len(groups)
        if not conserved(self._trained, window):
            raise RuntimeError(
                f"step {step}: of {window.next_ticket} prompts drawn, {self._trained} were "
                f"trained, {window.discarded} discarded, {window.dropped} dropped and "
                f"{len(window.pending)} are pending, which is a bug: please report it with "
                f"{self._path}"
            )
        commit = Commit(
            step=step,
            tickets=[g.group.ticket for g in groups],
            prompts=[g.group.prompt.id for g in groups],
            table=self._digest,
            window=window,
        )
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(commit.line())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot(step, self._path, error) from error
        self.last = commit

    @staticmethod
    def _cannot(step: int, path: Path, error: OSError) -> RuntimeError:
        return RuntimeError(
            f"step {step}: {path} cannot be written ({error.strerror}), and nothing is trained "
            "that is not on disk: make room there, and the same command goes on from step "
            f"{step - 1}"
        )

    def _commits(self) -> list[Commit]:
        return read_ledger(self._folder)[0]

    def replayable(self, step: int) -> list[Commit]:
        """The commits behind `step` whose tables are all there and are what was trained."""
        commits = []
        for commit in self._commits():
            if commit.step <= step:
                continue
            path = table_path(self._rollouts, commit.step)
            if commit.step != step + len(commits) + 1 or not path.is_file():
                break
            if digest(path) != commit.table:
                break
            commits.append(commit)
        return commits

    def recorded(self, commit: Commit) -> Sealed:
        path = table_path(self._rollouts, commit.step)
        return Sealed(pa.py_buffer(path.read_bytes()), commit.table)

    def rewind(self, step: int, window: WindowState) -> int:
        """Put aside what came after `step`, lines and tables; how many steps that were. `window` is
        what the run goes on with."""
        commits = self._commits()
        kept = [commit for commit in commits if commit.step <= step]
        whole = "".join(commit.line() for commit in kept)
        if self._path.exists() and self._path.read_bytes() != whole.encode():
            shutil.copy2(self._path, free_name(self._path))
            replace_text(self._path, whole)
        for path in list(self._recorded()):  # a replay must not mix what was trained with the rest
            if int(path.stem) > step:
                path.rename(free_name(path.with_suffix(".arrow.superseded")))
                logprobs.forget(self._rollouts.parent, int(path.stem))
        # Not by the lines: one that was damaged trained its groups all the same.
        left = len(window.pending) + window.discarded + window.dropped
        self._trained = window.next_ticket - left
        self.last = kept[-1] if kept else None
        return len(commits) - len(kept)

    def forget(self, step: int) -> None:
        """Delete the tables up to `step`: a checkpoint holds what they taught."""
        for path in list(self._recorded()):
            if int(path.stem) <= step:
                path.unlink()
                logprobs.forget(self._rollouts.parent, int(path.stem))

    def _recorded(self) -> Iterator[Path]:
        return self._rollouts.glob("[0-9]*.arrow")


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return blake3(path.read_bytes()).hexdigest()


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
