"""The Arrow schema of one step's data, and groups <-> table.

The table on the wire is the table on disk. It holds facts only: tokens, behaviour logprobs, policy
versions, rewards. Advantages and losses are the learner's. Whatever is wrong with a group is
refused here, once, by a message that names group, sample and column.
"""

import bisect
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3

from rewards import OUTCOMES, Score
from rollout.types import Completion, Group, Prompt, ScoredGroup

SCHEMA_VERSION = "4"


def _list_of(value_type: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", value_type, nullable=False))


STEP = pa.struct(
    [
        pa.field("end", pa.int32(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
    ]
)
"""A judged step: the number of completion tokens up to its end, and its reward."""

ROLLOUTS = pa.schema(
    [
        pa.field("group_id", pa.int64(), nullable=False),
        pa.field("sample_id", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("prompt_ids", _list_of(pa.int32()), nullable=False),
        pa.field("completion_ids", _list_of(pa.int32()), nullable=False),
        pa.field("trainable", _list_of(pa.bool_()), nullable=False),
        pa.field("behaviour_logprobs", _list_of(pa.float32()), nullable=False),
        pa.field("policy_versions", _list_of(pa.int32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=True),
        pa.field("reward_parts", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("reward_outcome", pa.string(), nullable=False),
        pa.field("reward_seconds", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("reward_note", pa.string(), nullable=False),
        pa.field("step_rewards", _list_of(STEP), nullable=False),
        pa.field("greedy_reward", pa.float64(), nullable=True),
        pa.field("round", pa.int32(), nullable=False),
    ]
)
"""One row per completion. `reward` is float64, not float32: 0.1 written as float32 and read back is
not the 0.1 that the verifier returned, and re-scoring must agree to the bit."""


def to_table(groups: Sequence[ScoredGroup], *, step: int, run: str, temperature: float) -> pa.Table:
    """The table of one step, rows in the order of groups and siblings.

    Raises ValueError on misaligned columns, on completions without a trainable token, and on
    logprobs that are not finite where the token is trainable and the completion has a reward.
    """
    for scored in groups:
        _check(scored)
    rows = [
        (scored, sample, completion, score)
        for scored in groups
        for sample, (completion, score) in enumerate(
            zip(scored.group.completions, scored.scores, strict=True)
        )
    ]
    prompts = [scored.group.prompt for scored, *_ in rows]
    columns = {
        "group_id": [scored.group.ticket for scored, *_ in rows],
        "sample_id": [sample for _, sample, *_ in rows],
        "prompt_id": [prompt.id for prompt in prompts],
        "source": [prompt.source for prompt in prompts],
        "prompt": [prompt.text for prompt in prompts],
        "answer": [prompt.answer for prompt in prompts],
        "extra": [prompt.extra for prompt in prompts],
        "completion": [completion.text for *_, completion, _ in rows],
        "prompt_ids": _ragged([prompt.token_ids for prompt in prompts], np.int32),
        "completion_ids": _ragged([c.token_ids for *_, c, _ in rows], np.int32),
        "trainable": _ragged([c.trainable for *_, c, _ in rows], np.bool_),
        "behaviour_logprobs": _ragged([c.logprobs for *_, c, _ in rows], np.float32),
        "policy_versions": _ragged([c.versions for *_, c, _ in rows], np.int32),
        "finish_reason": [completion.finish_reason for *_, completion, _ in rows],
        "reward": [score.reward for *_, score in rows],
        "reward_parts": [list(score.parts.items()) for *_, score in rows],
        "reward_outcome": [score.outcome for *_, score in rows],
        "reward_seconds": [list(score.seconds.items()) for *_, score in rows],
        "reward_note": [score.note for *_, score in rows],
        "step_rewards": [_steps(scored, sample) for scored, sample, *_ in rows],
        "greedy_reward": [scored.greedy_reward for scored, *_ in rows],
        "round": [scored.group.rounds[n] if scored.group.rounds else 0 for scored, n, *_ in rows],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
        for field, column in zip(ROLLOUTS, columns.values(), strict=True)
    ]
    metadata = {
        "grpo.schema": SCHEMA_VERSION,
        "step": str(step),
        "run": run,
        "temperature": repr(temperature),
    }
    return pa.Table.from_arrays(arrays, schema=ROLLOUTS.with_metadata(metadata))


def _steps(scored: ScoredGroup, sample: int) -> list[dict[str, float]]:
    steps = scored.steps[sample] if scored.steps else ()
    return [{"end": end, "reward": reward} for end, reward in steps]


def _ragged(arrays: list[np.ndarray], dtype: type) -> pa.Array:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    values = np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)
    value_type = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values, type=value_type), type=_list_of(value_type)
    )


def _check(scored: ScoredGroup) -> None:
    group = scored.group
    where = f"group {group.ticket} (prompt {group.prompt.id})"
    for what, given in (
        ("scores", scored.scores),
        ("rounds", group.rounds or group.completions),
        ("judged steps", scored.steps or group.completions),
    ):
        if len(given) != len(group.completions):
            raise ValueError(
                f"{where}: {len(group.completions)} completions but {len(given)} {what}"
            )
    if len(group.prompt.token_ids) == 0:
        raise ValueError(f"{where}: column prompt_ids is empty")
    for sample, score in enumerate(scored.scores):
        if score.outcome not in OUTCOMES or (score.reward is None) != (
            score.outcome == "unscorable"
        ):
            raise ValueError(
                f"{where}, sample {sample}: reward {score.reward} with outcome {score.outcome!r}; "
                f"outcomes are {', '.join(OUTCOMES)}, and the unscorable have no reward"
            )
    lengths = [len(completion.token_ids) for completion in group.completions]
    for column, values in (
        ("trainable", [c.trainable for c in group.completions]),
        ("behaviour_logprobs", [c.logprobs for c in group.completions]),
        ("policy_versions", [c.versions for c in group.completions]),
    ):
        for sample, (entries, length) in enumerate(zip(map(len, values), lengths, strict=True)):
            if entries != length:
                raise ValueError(
                    f"{where}, sample {sample}: column {column} has {entries} entries, "
                    f"completion_ids has {length}"
                )
    for sample, steps in enumerate(scored.steps):
        length = lengths[sample]
        if any(not 1 <= end <= length or not np.isfinite(reward) for end, reward in steps):
            raise ValueError(
                f"{where}, sample {sample}: column step_rewards is {list(steps)}; ends lie in "
                f"1..{length} and rewards are finite"
            )
    if not lengths:
        return
    # All siblings at once: a call of numpy's on each would be a tenth of the driver's work.
    trainable = np.concatenate([c.trainable for c in group.completions])
    finite = np.isfinite(np.concatenate([c.logprobs for c in group.completions]))
    starts = list(itertools.accumulate(lengths[:-1], initial=0))
    some = np.logical_or.reduceat(trainable, starts) if all(lengths) else np.array(lengths) > 0
    if not some.all():
        raise ValueError(f"{where}, sample {some.argmin()}: no trainable token")
    bad = () if finite.all() else np.flatnonzero(trainable & ~finite)
    for place in map(int, bad):
        sample = bisect.bisect(starts, place) - 1
        if scored.scores[sample].reward is not None:
            at = place - starts[sample]
            raise ValueError(
                f"{where}, sample {sample}: column behaviour_logprobs is "
                f"{group.completions[sample].logprobs[at]} at token {at}, which is trainable"
            )


def to_groups(table: pa.Table) -> list[ScoredGroup]:
    """The groups of a table, the exact inverse of `to_table`. Raises ValueError when the table is
    not of this schema."""
    check_schema(table)
    groups: list[ScoredGroup] = []
    rows = table.to_pylist()
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end]["group_id"] == rows[start]["group_id"]:
            continue
        groups.append(_group(rows[start:end]))
        start = end
    return groups


def _group(rows: list[dict]) -> ScoredGroup:
    first = rows[0]
    prompt = Prompt(
        id=first["prompt_id"],
        token_ids=np.array(first["prompt_ids"], dtype=np.int32),
        text=first["prompt"],
        answer=first["answer"],
        extra=first["extra"],
        source=first["source"],
    )
    completions = tuple(
        Completion(
            token_ids=np.array(row["completion_ids"], dtype=np.int32),
            trainable=np.array(row["trainable"], dtype=np.bool_),
            logprobs=np.array(row["behaviour_logprobs"], dtype=np.float32),
            versions=np.array(row["policy_versions"], dtype=np.int32),
            text=row["completion"],
            finish_reason=row["finish_reason"],
        )
        for row in rows
    )
    scores = tuple(
        Score(
            reward=row["reward"],
            parts=dict(row["reward_parts"]),
            outcome=row["reward_outcome"],
            note=row["reward_note"],
            seconds=dict(row["reward_seconds"]),
        )
        for row in rows
    )
    rounds = tuple(row["round"] for row in rows)
    group = Group(
        ticket=first["group_id"],
        prompt=prompt,
        completions=completions,
        rounds=rounds if any(rounds) else (),
    )
    steps = tuple(
        tuple((step["end"], step["reward"]) for step in row["step_rewards"]) for row in rows
    )
    return ScoredGroup(
        group=group,
        scores=scores,
        steps=steps if any(steps) else (),
        greedy_reward=first["greedy_reward"],
    )


def check_schema(table: pa.Table) -> None:
    """Raises ValueError naming the first column that is missing or of another type."""
    for field in ROLLOUTS:
        if field.name not in table.schema.names:
            raise ValueError(
                f"the table has no column {field.name!r} (it has {table.schema.names})"
            )
        found = table.schema.field(field.name).type
        if found != field.type:
            raise ValueError(f"column {field.name!r} is {found}, expected {field.type}")


class Damaged(RuntimeError):
    """The bytes of a table are not those that were sent or recorded."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A table as an Arrow file, on the wire and on the disk alike."""

    content: pa.Buffer
    digest: str
    """blake3 of the content"""

    def open(self) -> pa.Table:
        """The table, without a copy. Raises Damaged when the content does not match its digest,
        ValueError when it is no table of this schema."""
        if blake3(self.content).hexdigest() != self.digest:
            raise Damaged(f"a table of {self.content.size} bytes does not match its digest")
        table = _of_today(pa.ipc.open_file(self.content).read_all())
        check_schema(table)
        return table


def seal(table: pa.Table) -> Sealed:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    return Sealed(content, blake3(content).hexdigest())


def write_table(table: pa.Table, path: Path) -> None:
    write_sealed(seal(table), path)


def write_sealed(sealed: Sealed, path: Path) -> None:
    """Write under a temporary name, flush to the disk, rename: the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(sealed.content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _of_today(table: pa.Table) -> pa.Table:
    """A table of schema 3, whose groups were all sampled at once."""
    if (table.schema.metadata or {}).get(b"grpo.schema") != b"3":
        return table
    at_once = pa.array(np.zeros(len(table), dtype=np.int32))
    metadata = {**table.schema.metadata, b"grpo.schema": SCHEMA_VERSION.encode()}
    table = table.append_column(ROLLOUTS.field("round"), at_once)
    return table.replace_schema_metadata(metadata)


def read_table(path: Path) -> pa.Table:
    """Raises ValueError when the file is not an Arrow table of this schema."""
    try:
        with pa.memory_map(str(path)) as source:
            table = _of_today(pa.ipc.open_file(source).read_all())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not an Arrow file: {error}") from error
    try:
        check_schema(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table
