"""Table to padded micro-batches for one rank.

Every rank reads the whole table and computes the same plan, so denominators, advantages and the
number of micro-batches agree everywhere without a collective. The shift by one (the logprob of a
token is read one position before it) exists in this file only.

Legend: N rows of the table, B rows of a micro-batch, T time.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner.algorithms import Algorithm


@dataclass(frozen=True, slots=True)
class Counts:
    """What the step trains on, over all ranks: the denominators."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The columns of a table that training needs, one entry per row."""

    tokens: list[np.ndarray]
    """int32: prompt and completion"""
    prompt_lengths: np.ndarray
    trainable: list[np.ndarray]
    """bool, of the completion; all false on a row without a reward"""
    behaviour: list[np.ndarray]
    """float32, of the completion"""
    advantages: np.ndarray
    """float64 [N]"""
    counts: Counts

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(t) for t in self.tokens])


def read_rows(table: pa.Table, algorithm: Algorithm) -> Rows:
    """A row whose reward is null (our failure) trains nothing and is in no denominator."""
    rewards = np.array(table["reward"].to_numpy(zero_copy_only=False), dtype=np.float64)
    scored = ~np.isnan(rewards)
    prompts, completions = _lists(table["prompt_ids"]), _lists(table["completion_ids"])
    trainable = [mask & keep for mask, keep in zip(_lists(table["trainable"]), scored, strict=True)]
    sizes = np.array([int(mask.sum()) for mask in trainable])
    return Rows(
        tokens=[np.concatenate(pair) for pair in zip(prompts, completions, strict=True)],
        prompt_lengths=np.array([len(p) for p in prompts]),
        trainable=trainable,
        behaviour=_lists(table["behaviour_logprobs"]),
        advantages=algorithm.advantage(rewards, table["group_id"].to_numpy()),
        counts=Counts(tokens=int(sizes.sum()), sequences=int((sizes > 0).sum())),
    )


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as numpy arrays; views into Arrow's memory where the type allows."""
    merged = column.combine_chunks()
    offsets = merged.offsets.to_numpy()
    values = merged.values.to_numpy(zero_copy_only=False)
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


@dataclass(frozen=True, slots=True)
class Slice:
    """One micro-batch of the plan."""

    rows: np.ndarray
    """Row numbers; empty on a rank that has nothing left and takes part all the same, because
    ZeRO's collectives want every rank in every pass."""
    positions: int
    """Most trained positions of this micro-batch on any rank: all ranks cut their logits into the
    same number of chunks."""


def plan(rows: Rows, *, ranks: int, micro_batch_tokens: int) -> list[list[Slice]]:
    """Which rows each rank trains together: `plan[rank][k]`, as many k on every rank.

    Rows are dealt out from longest to shortest, so ranks get like work and rows of like length
    share a micro-batch. Rows without a trainable token are left out.
    """
    sizes = np.array([int(mask.sum()) for mask in rows.trainable])
    lengths = rows.lengths
    useful = np.flatnonzero(sizes)
    order = useful[np.argsort(-lengths[useful], kind="stable")]
    per_rank = [_fill(order[rank::ranks], lengths, micro_batch_tokens) for rank in range(ranks)]
    count = max(1, max(len(batches) for batches in per_rank))
    nothing = np.empty(0, dtype=np.int64)
    for batches in per_rank:
        batches.extend([nothing] * (count - len(batches)))
    most = [max(int(sizes[batches[k]].sum()) for batches in per_rank) for k in range(count)]
    return [
        [Slice(rows=batch, positions=max(1, most[k])) for k, batch in enumerate(batches)]
        for batches in per_rank
    ]


def _fill(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut an order of falling lengths where the padded size would pass the budget."""
    batches: list[np.ndarray] = []
    start = 0
    for end in range(1, len(order) + 1):
        longest = lengths[order[start]]
        if end == len(order) or (end + 1 - start) * longest > budget:
            batches.append(order[start:end])
            start = end
    return batches


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded. Index t of every BT tensor is about predicting the token at t + 1.

    There is no attention mask: under causal attention nothing real looks at padding on its right.
    """

    tokens_BT: Tensor
    trains_BT: Tensor
    behaviour_BT: Tensor
    advantage_B1: Tensor

    @property
    def targets_BT(self) -> Tensor:
        """The token that each position predicts; the last column's is meaningless, never
        trained."""
        return self.tokens_BT.roll(-1, dims=1)


def collate(rows: Rows, batch: Sequence[int] | np.ndarray, device: torch.device) -> MicroBatch:
    """An empty batch becomes one row of padding that trains nothing."""
    height = max(1, len(batch))
    width = max([2, *(len(rows.tokens[row]) for row in batch)])
    tokens_BT = np.zeros((height, width), dtype=np.int64)
    trains_BT = np.zeros((height, width), dtype=np.bool_)
    behaviour_BT = np.zeros((height, width), dtype=np.float32)
    advantage_B1 = np.zeros((height, 1), dtype=np.float32)
    for index, row in enumerate(batch):
        tokens = rows.tokens[row]
        first, last = rows.prompt_lengths[row] - 1, len(tokens) - 1
        tokens_BT[index, : len(tokens)] = tokens
        trains_BT[index, first:last] = rows.trainable[row]
        behaviour_BT[index, first:last] = rows.behaviour[row]
        advantage_B1[index] = rows.advantages[row]
    return MicroBatch(
        tokens_BT=torch.from_numpy(tokens_BT).to(device),
        trains_BT=torch.from_numpy(trains_BT).to(device),
        behaviour_BT=torch.from_numpy(behaviour_BT).to(device),
        advantage_B1=torch.from_numpy(advantage_B1).to(device),
    )
