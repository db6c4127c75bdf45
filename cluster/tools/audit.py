"""`python -m cluster ledger show|verify|diff|rescore RUN`: what a run folder says was trained, and
whether it holds."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import checkpoint
from cluster.config import RunConfig, load
from cluster.ledger import Commit, conserved, digest, read_ledger, table_path
from cluster.tools.dataset import functions_only
from rewards import Score
from rewards.scorer import Scorer
from rollout.schema import read_table, to_groups
from rollout.types import NO_POLICY

LEARNED_FROM = [
    "group_id",
    "sample_id",
    "round",
    "prompt_ids",
    "completion_ids",
    "trainable",
    "behaviour_logprobs",
    "policy_versions",
    "finish_reason",
    "reward",
    "step_rewards",
    "greedy_reward",
]
"""Columns that the learner reads."""


@dataclass(frozen=True)
class Recorded:
    """A run folder."""

    folder: Path
    config: RunConfig
    commits: list[Commit]
    wrong: str
    """With the first line of the ledger that is damaged; empty when none is."""

    @property
    def last(self) -> int:
        return self.commits[-1].step if self.commits else 0

    @classmethod
    def of(cls, folder: Path) -> "Recorded":
        """Raises ValueError when it is none."""
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is not a run folder: it has no config.json")
        config = load([str(folder / "config.json")], key="config").config
        return cls(folder, config, *read_ledger(folder))

    def path(self, step: int) -> Path:
        return table_path(self.folder / "rollouts", step)


def show(folder: Path) -> None:
    """A line per step."""
    run = Recorded.of(folder)
    heads = ("step", "groups", "rows", "reward", "staleness", "pending", "discarded", "dropped")
    print(" ".join(f"{head:>9}" for head in heads))
    for commit in run.commits:
        rows, reward, stale = "-", "-", "-"
        if run.path(commit.step).is_file():
            table = read_table(run.path(commit.step))
            rewards = [each for each in table["reward"].to_pylist() if each is not None]
            rows, reward = str(len(table)), f"{statistics.fmean(rewards):.3f}" if rewards else "-"
            stale = str(max(_ages(table, commit.step), default=0))
        window = commit.window
        cells = (commit.step, len(commit.tickets), rows, reward, stale)
        cells += (len(window.pending), window.discarded, window.dropped)
        print(" ".join(f"{cell!s:>9}" for cell in cells))
    if run.wrong:
        print(run.wrong)


def _ages(table: pa.Table, step: int) -> Iterator[int]:
    """Of each completion that a policy of this run sampled, how old its oldest token is."""
    for versions in table["policy_versions"].to_pylist():
        if min(versions) != NO_POLICY:
            yield step - 1 - min(versions)


def verify(folder: Path) -> int:
    """Print what does not hold; the exit code."""
    run = Recorded.of(folder)
    found = list(_faults(run))
    for fault in found:
        print(fault)
    tables = sum(run.path(commit.step).is_file() for commit in run.commits)
    trained = sum(len(commit.tickets) for commit in run.commits)
    print(
        f"{len(run.commits)} steps, {trained} groups trained, {tables} tables, {len(found)} faults"
    )
    return 1 if found else 0


def _faults(run: Recorded) -> Iterator[str]:
    if run.wrong:
        yield run.wrong
    trained = 0
    seen: Counter[int] = Counter()
    for number, commit in enumerate(run.commits, start=1):
        if commit.step != number:
            yield f"line {number} is of step {commit.step}"
        seen.update(commit.tickets)
        trained += len(commit.tickets)
        if not conserved(trained, commit.window):
            yield f"step {commit.step}: a prompt was lost, or counted twice"
        yield from _table_faults(run, commit)
    twice = sorted(ticket for ticket, times in seen.items() if times > 1)
    if twice:
        yield f"trained more than once: tickets {twice[:10]}"
    for saved in sorted((run.folder / "checkpoints").glob("[0-9]*")):
        try:
            checkpoint.read(saved)
        except ValueError as error:
            yield str(error)
        if int(saved.name) > run.last:
            yield f"{saved} is of a step that the ledger does not have"
    for path in sorted((run.folder / "rollouts").glob("[0-9]*.arrow")):
        if int(path.stem) > run.last + 1:  # the next one may have been on its way to the learner
            yield f"{path} is of a step that the ledger does not have"


def _table_faults(run: Recorded, commit: Commit) -> Iterator[str]:
    path = run.path(commit.step)
    if not path.is_file():
        # Where tables are not kept, those up to a checkpoint are gone.
        saved = [int(folder.name) for folder in (run.folder / "checkpoints").glob("[0-9]*")]
        earlier = [each for each in run.commits if each.step < commit.step]
        hole = any(run.path(each.step).is_file() for each in earlier)
        if hole or run.config.logging.keep_rollouts or commit.step > max(saved, default=0):
            yield f"step {commit.step}: {path} is missing"
        return
    if digest(path) != commit.table:
        yield f"step {commit.step}: {path} is not what was trained"
        return
    table = read_table(path)
    if list(dict.fromkeys(table["group_id"].to_pylist())) != commit.tickets:
        yield f"step {commit.step}: {path} holds other groups than the ledger names"
    bound = run.config.schedule.max_staleness
    ages = list(_ages(table, commit.step))
    if max(ages, default=0) > bound:
        yield f"step {commit.step}: a token is older than schedule.max_staleness={bound}"
    if min(ages, default=0) < 0:
        yield f"step {commit.step}: a token is of a version that was not there yet"


def diff(one: Path, other: Path) -> int:
    """Where two runs part: the first step that learned from something else. The exit code."""
    unseen = 0
    runs = [Recorded.of(folder) for folder in (one, other)]
    for ours, theirs in zip(*(run.commits for run in runs), strict=False):
        step = ours.step
        if ours.tickets != theirs.tickets or ours.prompts != theirs.prompts:
            print(f"step {step}: other prompts")
            return 1
        if not all(run.path(step).is_file() for run in runs):
            unseen += 1
            continue
        tables = [read_table(run.path(step)) for run in runs]
        changed = [name for name in LEARNED_FROM if not _same(tables[0][name], tables[1][name])]
        if changed:
            print(f"step {step}: the same prompts, but {', '.join(changed)} differ")
            return 1
    counts = [len(run.commits) for run in runs]
    print(f"the same in all of the first {min(counts)} steps; {counts[0]} and {counts[1]} in all")
    if unseen:
        print(f"of {unseen} steps only the prompts were compared: a table is missing")
    return 0 if counts[0] == counts[1] and not unseen else 1


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Equal, a NaN to a NaN as well."""
    if one.equals(other) or not pa.types.is_list(one.type):
        return one.equals(other)
    lists = [each.combine_chunks() for each in (one, other)]
    sizes = [each.value_lengths() for each in lists]
    flat = [each.flatten().to_numpy(zero_copy_only=False) for each in lists]
    return sizes[0].equals(sizes[1]) and np.array_equal(*flat, equal_nan=flat[0].dtype.kind == "f")


def rescore(folder: Path, overrides: Sequence[str]) -> int:
    """Run the verifiers again over what is recorded; where a part of a reward comes out otherwise.
    The exit code. Services are not asked."""
    run = Recorded.of(folder)
    if run.config.is_supervised:
        raise ValueError(f"{folder}: demonstrations are not scored")
    changed = load([str(folder / "config.json")], overrides, key="config").config
    rewards = functions_only(changed)
    if not rewards.verifiers:
        raise ValueError(f"{', '.join(run.config.rewards.verifiers)}: services are not asked again")
    scorer = Scorer(rewards, changed.sampler.sampling.max_tokens)
    total = different = 0
    try:
        for commit in run.commits:
            if not run.path(commit.step).is_file():
                continue
            for scored in to_groups(read_table(run.path(commit.step))):
                attempts = [each.attempt(tokens=True) for each in scored.group.completions]
                fresh = scorer.score(scored.group.prompt.task(), attempts)
                for number, (was, now) in enumerate(zip(scored.scores, fresh, strict=True)):
                    total += 1
                    before, after = (_parts(each, rewards.verifiers) for each in (was, now))
                    if before == after:
                        continue
                    different += 1
                    if different <= 10:
                        name = f"step {commit.step}, {scored.group.prompt.id}, sample {number}"
                        print(f"{name}: {before} was trained, now {after} {now.note}")
    finally:
        scorer.close()
    print(f"{total} completions, {different} scored otherwise")
    return 1 if different else 0


def _parts(score: Score, verifiers: Iterable[str]) -> dict[str, Any]:
    """What these verifiers said."""
    return {v: round(score.parts[v], 6) for v in verifiers if v in score.parts}
