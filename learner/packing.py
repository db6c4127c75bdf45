"""Which rows go together: micro-batches of like work on every rank, with hardly a slot of padding.

Legend: N rows of the table; a micro-batch is B rows that the model sees at once, each of which may
hold several sequences, one behind the other.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Lists = list[list[int]]


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of training on a sequence of length L: `linear * L + quadratic * L^2`. Only their
    quotient matters."""

    linear: float = 1.0
    quadratic: float = 0.0

    def of(self, lengths: Any) -> Any:
        lengths = np.asarray(lengths, dtype=np.float64)
        return lengths * (self.linear + self.quadratic * lengths)

    @staticmethod
    def of_model(config: Any) -> "Work":
        """Per token 6 FLOPs per weight of a layer, and 12 per hidden unit for each token that is
        attended to: forward and backward (the counting of PaLM, arXiv 2204.02311, appendix B)."""
        text = config.get_text_config()
        hidden, layers = text.hidden_size, text.num_hidden_layers
        inner = getattr(text, "intermediate_size", None) or 4 * hidden
        inner = max(inner) if isinstance(inner, list | tuple) else inner  # one per layer
        return Work(6.0 * layers * hidden * (4 * hidden + 3 * inner), 12.0 * layers * hidden)


WORTH_PACKING = 1.25
"""Padding that costs more than packing does: on a CPU, attention under a mask of sequences makes an
update of short rows an eighth longer than under the causal one."""
PACKABLE = frozenset(
    {
        *("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral"),
        *("olmo2", "phi3", "qwen2", "qwen3", "smollm3"),
    }
)
"""Model types that keep sequences apart which stand in one row, told by position ids that begin
anew; each is held against padded rows by `tests/test_packing.py`. Others may look at the sequence
before (OPT, Falcon and Bloom do) or carry a state over from it, and are padded."""


def can_pack(config: Any) -> bool:
    return config.get_text_config().model_type in PACKABLE


WORTH_SHARING = 1.25
"""Work that must be saved before siblings share their prompt: their attention needs a mask, which
no kernel takes advantage of."""
WIDEST = 8192
"""Slots of a row in which siblings share a prompt: its mask has as many cells squared."""
SHAREABLE = frozenset({"granite", "llama", "olmo2", "qwen2", "qwen3", "smollm3"})
"""Model types whose attention is full and takes a mask of who sees whom; each is held against
padded rows by `tests/test_packing.py`."""


def can_share(config: Any) -> bool:
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    takes_masks = (config._attn_implementation or "sdpa") == "sdpa"
    return text.model_type in SHAREABLE and not window and takes_masks


@dataclass(frozen=True, slots=True)
class Siblings:
    """Rows that begin with the same prompt."""

    groups_N: np.ndarray
    prompts_N: np.ndarray
    """Length of each row's prompt"""

    def families(
        self, lengths_N: np.ndarray, chosen: np.ndarray, *, budget: int, ranks: int = 1
    ) -> list[np.ndarray]:
        """The chosen rows, those together that stand behind one copy of their prompt: on `budget`
        slots at most, and in as many parts as it takes to give each rank one."""
        found: list[np.ndarray] = []
        groups = np.unique(self.groups_N[chosen])
        parts, widest = -(-ranks // max(1, len(groups))), min(WIDEST, budget)
        for group in groups:
            every = chosen[self.groups_N[chosen] == group].tolist()
            most, before = -(-len(every) // parts), int(self.prompts_N[every[0]]) - 1
            members, used = [], before
            for row in every:
                own = int(lengths_N[row]) - before
                if members and (used + own > widest or len(members) == most):
                    found.append(np.array(members))
                    members, used = [], before
                members.append(row)
                used += own
            found.append(np.array(members))
        return found

    def width(self, lengths_N: np.ndarray, family: np.ndarray) -> int:
        """Slots of a row that holds them: the prompt but for its last token, which each sibling
        has for itself, since it predicts that sibling's first token."""
        before = int(self.prompts_N[family[0]]) - 1
        return before + int((lengths_N[family] - before).sum())


def balanced(
    lengths_N: np.ndarray, chosen: np.ndarray, *, ranks: int, budget: int, work: Work
) -> list[list[np.ndarray]]:
    """Rows of each micro-batch, `[rank][k]`, as many k on every rank: at most `budget` tokens each
    (but for a single longer row), and as near as can be to equal work, for all ranks at each k.

    The costliest row first, each to the micro-batch with the least work that has room for it
    (longest processing time first; Graham 1969).
    """
    costs = work.of(lengths_N[chosen])
    order = np.argsort(-costs, kind="stable")
    # Python's own numbers: the heap below is a loop over thousands of them.
    lengths = lengths_N[chosen][order].tolist()
    items = list(zip(order.tolist(), costs[order].tolist(), lengths, strict=True))
    each = max(1, -(-int(lengths_N[chosen].sum()) // (ranks * budget)))
    while (bins := _filled(items, ranks * each, budget)) is None:
        each += 1
    per_rank: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for k in range(each):
        # Forwards and backwards in turn, or the first rank would always have the most.
        ranked = range(ranks) if k % 2 == 0 else range(ranks - 1, -1, -1)
        for rank, members in zip(ranked, bins[k * ranks : (k + 1) * ranks], strict=True):
            per_rank[rank].append(chosen[np.array(members, dtype=np.int64)])
    return per_rank


def _filled(items: list[tuple[int, float, int]], count: int, budget: int) -> Lists | None:
    """The members of `count` micro-batches, from the most work to the least; None where one of the
    items does not fit."""
    heap = [(0.0, index, 0) for index in range(count)]
    members: Lists = [[] for _ in range(count)]
    too_full: list[tuple[int, float, int]] = []
    """(tokens, work, index), by the room that is left: they wait for a shorter row."""
    for item, cost, length in items:
        while too_full and too_full[0][0] + length <= budget:
            tokens, spent, index = heapq.heappop(too_full)
            heapq.heappush(heap, (spent, index, tokens))
        while heap and heap[0][2] and heap[0][2] + length > budget:
            spent, index, tokens = heapq.heappop(heap)
            heapq.heappush(too_full, (tokens, spent, index))
        if not heap:
            return None
        spent, index, tokens = heapq.heappop(heap)
        members[index].append(item)
        heapq.heappush(heap, (spent + cost, index, tokens + length))
    every = [*heap, *((spent, index, tokens) for tokens, spent, index in too_full)]
    return [members[index] for _, index, _ in sorted(every, reverse=True)]


def by_length(
    lengths_N: np.ndarray, chosen: np.ndarray, *, ranks: int, budget: int
) -> list[list[np.ndarray]]:
    """The same for padded rows: dealt out from longest to shortest, so that those of like length
    share a micro-batch. The budget counts padding."""
    order = chosen[np.argsort(-lengths_N[chosen], kind="stable")]
    return [_cut(order[rank::ranks], lengths_N, budget) for rank in range(ranks)]


def padded_work(per_rank: list[list[np.ndarray]], lengths_N: np.ndarray, work: Work) -> float:
    """Of micro-batches of these rows, each as wide as its longest: at each, that of the busiest
    rank, since the others wait for it."""

    def of(batch: np.ndarray) -> float:
        return len(batch) * float(work.of(lengths_N[batch].max())) if len(batch) else 0.0

    together = itertools.zip_longest(*per_rank, fillvalue=np.empty(0, dtype=np.int64))
    return sum(max(map(of, batches)) for batches in together)


def _cut(order: np.ndarray, lengths_N: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut an order of falling lengths where the padded size would pass the budget."""
    batches: list[np.ndarray] = []
    start = 0
    for end in range(1, len(order) + 1):
        longest = lengths_N[order[start]]
        if end == len(order) or (end + 1 - start) * longest > budget:
            batches.append(order[start:end])
            start = end
    return batches


def layout(
    lengths: Sequence[int], work: Work, *, budget: int = 1 << 60, varlen: bool = False
) -> Lists:
    """Which sequences stand in which row of a micro-batch, so that the model has the least to do: a
    row costs as much as one sequence of the widest row's length. No more than `budget` slots where
    that is possible, or else the fewest.

    `varlen` is for attention kernels that know where sequences end: everything in one row.
    """
    if varlen or len(lengths) < 2:
        return [list(range(len(lengths)))]
    longest, total = max(lengths), sum(lengths)
    height = max(1, total // longest)
    heights = {height, height - 1, height - 2, height * 7 // 8, height * 3 // 4, height // 2}
    candidates = [_stacked(lengths, rows) for rows in sorted(heights - {0, -1})]
    # Where sequences share a row, attention needs a mask, which is worth a few slots.
    costs = [(_cost(rows, lengths, work, budget), 1.03) for rows in candidates]
    alone = [[index] for index in range(len(lengths))]
    costs.append((_cost(alone, lengths, work, budget), 1.0))
    ranked = [(over, cost * mask) for (over, cost), mask in costs]
    return [*candidates, alone][ranked.index(min(ranked))]


def _stacked(lengths: Sequence[int], rows: int) -> Lists:
    """Longest first, each behind the shortest row."""
    heap = [(0, index) for index in range(rows)]
    members: Lists = [[] for _ in range(rows)]
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled, index = heapq.heappop(heap)
        members[index].append(item)
        heapq.heappush(heap, (filled + lengths[item], index))
    return [row for row in members if row]


def _cost(rows: Lists, lengths: Sequence[int], work: Work, budget: int) -> tuple[int, float]:
    """(slots beyond the budget, work)."""
    width = max(sum(lengths[i] for i in row) for row in rows)
    return max(0, len(rows) * width - budget), len(rows) * float(work.of(width))
