"""Table to micro-batches for one rank.

Every rank reads the whole table and computes the same plan, so denominators, advantages and the
number of micro-batches agree everywhere without a collective. The shift by one (the logprob of a
token is read one position before it) exists in this file only.

Legend: N rows of the table, S sequences of a micro-batch, B rows in which they stand, one behind
the other or alone; T time: of the longest completion in NT, of prompt and completion in ST, of a
row in BT.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner.objectives import Counts
from learner.packing import (
    WORTH_PACKING,
    WORTH_SHARING,
    Siblings,
    Work,
    balanced,
    by_length,
    layout,
    padded_work,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The columns of a table that training needs: facts."""

    tokens: list[np.ndarray]
    """int32 per row: prompt and completion"""
    prompt_lengths_N: np.ndarray
    mask_NT: np.ndarray
    """bool: the policy's own tokens of completions with a score"""
    trains_NT: np.ndarray
    """bool: of those, the ones that are trained"""
    behaviour_NT: np.ndarray
    """float32 logprobs of the sampler, 0 outside the mask"""
    rewards_N: np.ndarray
    """float64, NaN without a score"""
    groups_N: np.ndarray
    greedy_N: np.ndarray
    """float64 reward of the prompt's greedy completion, NaN where there is none"""
    versions_NT: np.ndarray
    """int32: the policy version that sampled each token"""
    rounds_N: np.ndarray
    """int32: in which round of its group it was sampled"""
    steps_NT: np.ndarray | None
    """float64 reward of a step at the token that ends it, NaN elsewhere; None unless asked for"""
    left_out: int
    """Scored rows that are not trained because a number of theirs is not finite."""

    def behind_seam(self, version: int) -> np.ndarray:
        """bool [N, T]: tokens that this version sampled, in completions that an older one began."""
        seen_NT = np.where(self.mask_NT, self.versions_NT, version)
        return self.mask_NT & (seen_NT == version) & (seen_NT.min(axis=1, keepdims=True) < version)

    @property
    def lengths_N(self) -> np.ndarray:
        return np.array([len(t) for t in self.tokens])

    @property
    def siblings(self) -> Siblings:
        return Siblings(self.groups_N, self.prompt_lengths_N)


def read_rows(table: pa.Table, *, mask_truncated: bool = False, judged_steps: bool = False) -> Rows:
    """A row whose reward is null (our failure) trains nothing and is in no denominator; nor does
    one with a number that is not finite. `mask_truncated` keeps completions that were cut in the
    baselines and trains none of them."""
    rewards_N = np.array(table["reward"].to_numpy(zero_copy_only=False), dtype=np.float64)
    prompts, completions = _lists(table["prompt_ids"]), _lists(table["completion_ids"])
    width = max([1, *map(len, completions)])
    mask_NT = _pad(_lists(table["trainable"]), width, np.bool_)
    behaviour_NT = _pad(_lists(table["behaviour_logprobs"]), width, np.float32)
    finite_N = (np.isfinite(behaviour_NT) | ~mask_NT).all(axis=1) & ~np.isinf(rewards_N)
    left_out = int((~finite_N & ~np.isnan(rewards_N)).sum())
    rewards_N[~finite_N] = np.nan
    mask_NT &= ~np.isnan(rewards_N)[:, None]
    trains_NT = mask_NT
    if mask_truncated:
        finished_N = np.array([reason == "stop" for reason in table["finish_reason"].to_pylist()])
        trains_NT = mask_NT & finished_N[:, None]
    return Rows(
        tokens=[np.concatenate(pair) for pair in zip(prompts, completions, strict=True)],
        prompt_lengths_N=np.array([len(p) for p in prompts]),
        mask_NT=mask_NT,
        trains_NT=trains_NT,
        behaviour_NT=np.where(mask_NT, behaviour_NT, np.float32(0)),
        rewards_N=rewards_N,
        groups_N=table["group_id"].to_numpy(),
        greedy_N=np.array(table["greedy_reward"].to_numpy(zero_copy_only=False), dtype=np.float64),
        versions_NT=_pad(_lists(table["policy_versions"]), width, np.int32),
        rounds_N=table["round"].to_numpy(),
        steps_NT=_steps(table["step_rewards"].to_pylist(), width) if judged_steps else None,
        left_out=left_out,
    )


def check_staleness(table: pa.Table, *, version: int, bound: int) -> None:
    """Whether each trainable token was sampled under the policy in training, `version`, or one at
    most `bound` versions older. The last look before the update; raises RuntimeError naming the
    row and the span of tokens."""
    versions, trainable = _lists(table["policy_versions"]), _lists(table["trainable"])
    flat = np.concatenate(versions) if versions else np.empty(0)
    wrong = (flat > version) | (flat < version - bound)
    wrong &= np.concatenate(trainable) if trainable else False
    if not wrong.any():
        return
    row = int(np.searchsorted(np.cumsum([len(v) for v in versions]), wrong.argmax(), side="right"))
    start = int(wrong.argmax()) - sum(len(v) for v in versions[:row])
    found = int(versions[row][start])
    same = versions[row][start:] == found
    end = start + (int((~same).argmax()) if not same.all() else len(same))
    group, sample = table["group_id"][row].as_py(), table["sample_id"][row].as_py()
    raise RuntimeError(
        f"step {version + 1} was about to train tokens {start} to {end - 1} of group {group}, "
        f"sample {sample}, which version {found} sampled: the policy in training is version "
        f"{version}, and schedule.max_staleness={bound}. This is a bug in the schedule"
    )


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as numpy arrays; views into Arrow's memory where the type allows."""
    merged = column.combine_chunks()
    offsets = merged.offsets.to_numpy()
    values = merged.values.to_numpy(zero_copy_only=False)
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def _pad(arrays: list[np.ndarray], width: int, dtype: type) -> np.ndarray:
    padded = np.zeros((len(arrays), width), dtype=dtype)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return padded


def _steps(rows: list[list[dict[str, float]]], width: int) -> np.ndarray:
    steps_NT = np.full((len(rows), width), np.nan)
    for row, steps in enumerate(rows):
        for step in steps:
            steps_NT[row, int(step["end"]) - 1] = step["reward"]
    return steps_NT


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What training compares with, per token [N, T]: decided before the table's first update."""

    trains: np.ndarray
    """bool: the tokens that the denominators count"""
    behaviour: np.ndarray
    anchor: np.ndarray
    advantage: np.ndarray
    weight: np.ndarray | None = None
    """The train/inference correction, 0 where a token was dropped; None where the anchor is what
    the sampler said."""
    seam: np.ndarray | None = None
    """bool, as `Rows.behind_seam`; while the policy is still the one that sampled these tokens"""
    reference: np.ndarray | None = None
    value: np.ndarray | None = None
    returns: np.ndarray | None = None

    def counts(self, rows: np.ndarray, *, max_tokens: int) -> Counts:
        """Of these rows, as one optimizer step."""
        sizes = self.trains[rows].sum(axis=1)
        sequences = int((sizes > 0).sum())
        return Counts(tokens=int(sizes.sum()), sequences=sequences, max_tokens=max_tokens)


def minibatches(groups_N: np.ndarray, count: int, *, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Row numbers of each optimizer step: all, or the groups dealt out anew by the seed. Never more
    parts than groups."""
    groups = np.unique(groups_N)
    if count == 1 or len(groups) == 1:
        return [np.arange(len(groups_N))]
    parts = np.array_split(np.random.default_rng(seed).permutation(groups), min(count, len(groups)))
    return [np.flatnonzero(np.isin(groups_N, part)) for part in parts]


Layout = Literal["padded", "packed", "shared"]
"""Each sequence in a row of its own; several behind each other; siblings behind one copy of their
prompt."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One micro-batch of the plan."""

    rows: np.ndarray
    """Row numbers; empty on a rank that has nothing left and takes part all the same, because
    ZeRO's collectives want every rank in every pass."""
    positions: int
    """Most trained positions of this micro-batch on any rank: all ranks cut their logits into the
    same number of chunks."""
    layout: Layout = "padded"


def plan(
    sizes_N: np.ndarray,
    lengths_N: np.ndarray,
    chosen: np.ndarray,
    *,
    ranks: int,
    micro_batch_tokens: int,
    work: Work | None = None,
    siblings: Siblings | None = None,
) -> list[list[Slice]]:
    """Which of the chosen rows each rank takes together: `plan[rank][k]`, as many k on every rank.

    Rows of like length share a micro-batch. Given the `work` of a model that can pack, sequences
    share rows where padding would cost more than that does, and micro-batches are balanced by it;
    given the `siblings` of one that takes masks, they share their prompt where it is long enough.
    Rows without a trained token are left out.
    """
    useful = chosen[sizes_N[chosen] > 0]
    per_rank = by_length(lengths_N, useful, ranks=ranks, budget=micro_batch_tokens)
    stands: Layout = "padded"
    if work is not None:
        padded = padded_work(per_rank, lengths_N, work)
        packed = float(work.of(lengths_N[useful]).sum()) / ranks
        if WORTH_PACKING * packed < padded:
            stands = "packed"
        if siblings is not None and len(useful):
            families = siblings.families(lengths_N, useful, budget=micro_batch_tokens, ranks=ranks)
            widths = np.array([siblings.width(lengths_N, family) for family in families])
            every = np.arange(len(families))
            by_family = by_length(widths, every, ranks=ranks, budget=micro_batch_tokens)
            if WORTH_SHARING * padded_work(by_family, widths, work) < min(padded, packed):
                stands = "shared"
                per_rank = [
                    [np.concatenate([families[i] for i in batch]) for batch in batches]
                    for batches in by_family
                ]
        if stands == "packed":
            per_rank = balanced(
                lengths_N, useful, ranks=ranks, budget=micro_batch_tokens, work=work
            )
    count = max(1, max(len(batches) for batches in per_rank))
    nothing = np.empty(0, dtype=np.int64)
    for batches in per_rank:
        batches.extend([nothing] * (count - len(batches)))
    most = [max(int(sizes_N[batches[k]].sum()) for batches in per_rank) for k in range(count)]
    return [
        [Slice(batch, max(1, most[k]), stands) for k, batch in enumerate(batches)]
        for batches in per_rank
    ]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A micro-batch, padded on the right. Index t of every BT and ST tensor is about predicting the
    token at t + 1.

    BT is what the model sees, ST what everybody else does: a row per sequence. They are the same
    where each sequence has a row of its own. Only siblings that share a prompt need an attention
    mask: under causal attention nothing real looks at padding on its right, and sequences that
    stand behind each other are told apart by position ids that begin anew.
    """

    tokens_BT: Tensor
    trains_BT: Tensor
    trains_ST: Tensor
    spans: tuple[tuple[int, int, int], ...]
    """(row of the table, first, last) of each completion's predictions, in its own sequence"""
    position_ids_BT: Tensor | None = None
    places_ST: Tensor | None = None
    """int64: where in the flattened BT; both None where each sequence has its own row"""
    kin_BT: Tensor | None = None
    """int64: 0 on a prompt that the row's sequences share, then the number of the sequence"""

    @property
    def mask_B1TT(self) -> Tensor | None:
        """bool: who sees whom, where siblings share a prompt."""
        if self.kin_BT is None:
            return None
        asks, seen = self.kin_BT[:, None, :, None], self.kin_BT[:, None, None, :]
        return ((asks == seen) | (seen == 0)).tril()

    @property
    def targets_BT(self) -> Tensor:
        """The token that each position predicts; what stands at a sequence's end is meaningless,
        never trained."""
        return self.tokens_BT.roll(-1, dims=1)

    def per_sequence(self, values_BT: Tensor) -> Tensor:
        """[B, T] to [S, T], 0 outside the completions."""
        if self.places_ST is None:
            return values_BT
        return values_BT.flatten()[self.places_ST] * self.trains_ST.to(values_BT.dtype)

    def gather(self, values_NT: np.ndarray) -> Tensor:
        """What the table knows of these tokens, [S, T] in float32, 0 outside the completions."""
        values_ST = np.zeros(tuple(self.trains_ST.shape), dtype=np.float32)
        for index, (row, first, last) in enumerate(self.spans):
            values_ST[index, first:last] = values_NT[row, : last - first]
        return torch.from_numpy(values_ST).to(self.tokens_BT.device)

    def scatter(self, values_ST: Tensor, into_NT: np.ndarray) -> None:
        """The inverse: write what was computed into the table's array."""
        values = values_ST.float().cpu().numpy()
        for index, (row, first, last) in enumerate(self.spans):
            into_NT[row, : last - first] = values[index, first:last]


def ask(policy: Callable[..., Any], batch: Tokens, positions: int) -> tuple[Tensor, Tensor]:
    """(logp_ST, entropy_ST) of a `Policy`, or of an engine that holds one."""
    logp_BT, entropy_BT = policy(
        batch.tokens_BT,
        batch.trains_BT,
        batch.targets_BT,
        positions=positions,
        position_ids=batch.position_ids_BT,
        attention_mask=batch.mask_B1TT,
    )
    return batch.per_sequence(logp_BT), batch.per_sequence(entropy_BT)


def collate(
    rows: Rows,
    trains_NT: np.ndarray,
    batch: Sequence[int] | np.ndarray,
    device: torch.device,
    *,
    work: Work | None = None,
    budget: int = 1 << 60,
    varlen: bool = False,
    shares: bool = False,
) -> Tokens:
    """With `work`, sequences share rows where that is less work, on `budget` slots if they fit;
    with `shares`, siblings share their prompt. An empty batch becomes one row of padding that
    trains nothing."""
    lengths = [len(rows.tokens[row]) for row in batch]
    longest = max([2, *lengths])
    shape_ST = (max(1, len(batch)), longest)
    trains_ST, spans = np.zeros(shape_ST, dtype=np.bool_), []
    for index, row in enumerate(batch):
        first, last = int(rows.prompt_lengths_N[row]) - 1, lengths[index] - 1
        trains_ST[index, first:last] = trains_NT[row, : last - first]
        spans.append((int(row), first, last))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    if shares and lengths:
        families = rows.siblings.families(rows.lengths_N, np.asarray(batch), budget=budget)
        return _shared(rows, trains_ST, batch, families, tuple(spans), tensor)
    alone = [[index] for index in range(len(batch))]
    stands = alone
    if work is not None and lengths:
        stands = layout(lengths, work, budget=budget, varlen=varlen)
    if stands == alone:
        tokens_ST = np.zeros(shape_ST, dtype=np.int64)
        for index, row in enumerate(batch):
            tokens_ST[index, : lengths[index]] = rows.tokens[row]
        trains = tensor(trains_ST)
        return Tokens(tensor(tokens_ST), trains, trains, tuple(spans))
    shape_BT = (len(stands), max(sum(lengths[index] for index in row) for row in stands))
    tokens_BT = np.zeros(shape_BT, dtype=np.int64)
    trains_BT = np.zeros(shape_BT, dtype=np.bool_)
    position_ids_BT = np.zeros(shape_BT, dtype=np.int64)
    places_ST = np.zeros(shape_ST, dtype=np.int64)
    for at, row in enumerate(stands):
        start = 0
        for index in row:
            end = start + lengths[index]
            tokens_BT[at, start:end] = rows.tokens[batch[index]]
            trains_BT[at, start:end] = trains_ST[index, : lengths[index]]
            position_ids_BT[at, start:end] = np.arange(lengths[index])
            places_ST[index, : lengths[index]] = at * shape_BT[1] + np.arange(start, end)
            start = end
        # Padding counts on from 0, as a sequence of its own.
        position_ids_BT[at, start:] = np.arange(shape_BT[1] - start)
    return Tokens(
        tensor(tokens_BT),
        tensor(trains_BT),
        tensor(trains_ST),
        tuple(spans),
        tensor(position_ids_BT),
        tensor(places_ST),
    )


def _shared(
    rows: Rows,
    trains_ST: np.ndarray,
    batch: Sequence[int] | np.ndarray,
    families: list[np.ndarray],
    spans: tuple[tuple[int, int, int], ...],
    tensor: Callable[[np.ndarray], Tensor],
) -> Tokens:
    """Each family in a row: its prompt but for the last token, then, for each sibling, that token
    and the completion."""
    siblings, lengths_N = rows.siblings, rows.lengths_N
    shape_BT = (len(families), max(siblings.width(lengths_N, family) for family in families))
    tokens_BT, position_ids_BT, kin_BT = (np.zeros(shape_BT, dtype=np.int64) for _ in range(3))
    trains_BT = np.zeros(shape_BT, dtype=np.bool_)
    places_ST = np.zeros(trains_ST.shape, dtype=np.int64)
    index_of = {int(row): index for index, row in enumerate(batch)}
    for at, family in enumerate(families):
        before = int(rows.prompt_lengths_N[family[0]]) - 1
        tokens_BT[at, :before] = rows.tokens[family[0]][:before]
        position_ids_BT[at, :before] = np.arange(before)
        start = before
        for number, row in enumerate(family.tolist(), start=1):
            index, length = index_of[row], len(rows.tokens[row])
            end = start + length - before
            tokens_BT[at, start:end] = rows.tokens[row][before:]
            trains_BT[at, start:end] = trains_ST[index, before:length]
            position_ids_BT[at, start:end] = np.arange(before, length)
            kin_BT[at, start:end] = number
            places_ST[index, :before] = at * shape_BT[1] + np.arange(before)
            places_ST[index, before:length] = at * shape_BT[1] + np.arange(start, end)
            start = end
        kin_BT[at, start:] = len(family) + 1
    return Tokens(
        tensor(tokens_BT),
        tensor(trains_BT),
        tensor(trains_ST),
        spans,
        tensor(position_ids_BT),
        tensor(places_ST),
        tensor(kin_BT),
    )
