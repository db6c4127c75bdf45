"""The learner: against a bare loop, over ranks, its packing, and its Arrow tables."""

import contextlib
import multiprocessing
import queue
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import PAIRS, demo_model, in_turn, line, random_model, ratios

MAX_TOKENS = 256


def tables_of(count: int, *, groups: int = 32, size: int = 8, ragged: bool = False) -> list[Any]:
    """Tables shaped like the demo's (25 and about 25 tokens), or with lengths like those of long
    answers (lognormal)."""
    import numpy as np

    from rewards import Score
    from rollout import Completion, Group, Prompt, ScoredGroup
    from rollout.schema import to_table

    rng = np.random.default_rng(0)

    def tokens(length: int) -> Any:
        return rng.integers(1, 400, length).astype(np.int32)

    def completion() -> Completion:
        length = int(rng.integers(18, 36))
        if ragged:
            length = int(np.clip(rng.lognormal(4.0, 1.0), 4, MAX_TOKENS))
        return Completion(
            token_ids=tokens(length),
            trainable=np.ones(length, dtype=np.bool_),
            logprobs=np.full(length, -1.0, dtype=np.float32),
            versions=np.zeros(length, dtype=np.int32),
            text="",
            finish_reason="stop",
        )

    def group(ticket: int) -> ScoredGroup:
        prompt = Prompt(id="b", token_ids=tokens(25), text="", answer="", source="b")
        completions = tuple(completion() for _ in range(size))
        inner = Group(ticket=ticket, prompt=prompt, completions=completions)
        scores = tuple(Score(reward=float(i % 2), parts={}) for i in range(size))
        return ScoredGroup(group=inner, scores=scores)

    return [
        to_table([group(i) for i in range(groups)], step=1, run="b", temperature=1.0)
        for _ in range(count)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def placement_of(rank: int, ranks: int, port: int) -> Any:
    """A learner rank of this machine, in float32."""
    import torch

    from learner.engine import Placement

    torch.set_num_threads(1)
    return Placement(
        rank=rank,
        ranks=ranks,
        address="127.0.0.1",
        port=port,
        collectives="gloo",
        dtype=torch.float32,
    )


def learner_of(model: str, *, rank: int = 0, ranks: int = 1, port: int = 0, **options: Any) -> Any:
    from learner.config import LearnerConfig, ModelConfig
    from learner.learner import Learner

    config = LearnerConfig.model_validate({"ranks": ranks, **options})
    placement = placement_of(rank, ranks, port or free_port())
    return Learner(config, ModelConfig(path=model), placement, steps=100, temperature=1.0)


# -- against a bare loop --------------------------------------------------------------------------


def _against_bare(model: str, ragged: bool, out: Any) -> None:
    """Seconds of a learner of one rank, and of a plain PyTorch loop with the same micro-batches,
    loss and AdamW, on the same table, in turn."""
    import numpy as np
    import torch

    from learner.batch import ask, collate, minibatches, plan, read_rows
    from learner.model import Policy, load_model
    from learner.packing import Work

    learner = learner_of(model, zero={"stage": 0})
    [table] = tables_of(1, groups=6 if ragged else 32, ragged=ragged)
    policy = Policy(load_model(model, dtype=torch.float32), temperature=1.0, logits_chunk=1 << 24)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0)
    work = Work.of_model(policy.model.config)

    def bare() -> None:
        rows = read_rows(table)
        rewards = rows.rewards_N.reshape(-1, 8)
        scaled = (rewards - rewards.mean(1, keepdims=True)) / (
            rewards.std(1, keepdims=True, ddof=1) + 1e-4
        )
        advantage_N = torch.from_numpy(scaled.reshape(-1).astype(np.float32))
        [part] = minibatches(rows.groups_N, 1, seed=(0,))
        sizes = rows.trains_NT.sum(axis=1)
        [slices] = plan(
            sizes,
            rows.lengths_N,
            part,
            ranks=1,
            micro_batch_tokens=8192,
            work=work,
            siblings=rows.siblings,
        )
        for piece in slices:
            batch = collate(
                rows,
                rows.trains_NT,
                piece.rows,
                torch.device("cpu"),
                work=work if piece.layout == "packed" else None,
                budget=8192,
                shares=piece.layout == "shared",
            )
            logp_ST, _ = ask(policy, batch, piece.positions)
            ratio_ST = (logp_ST - batch.gather(rows.behaviour_NT)).exp()
            advantage_S1 = advantage_N[[row for row, *_ in batch.spans]][:, None]
            kept_ST = batch.trains_ST.float()
            clipped_ST = ratio_ST.clamp(0.8, 1.2)
            loss_ST = -torch.minimum(ratio_ST * advantage_S1, clipped_ST * advantage_S1) * kept_ST
            (loss_ST.sum(1) / kept_ST.sum(1)).sum().div(len(sizes)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    ours, theirs = in_turn(lambda: learner.update(table), bare, pairs=9)
    out.put((ours, theirs))
    learner.close()


def b8() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = demo_model(Path(folder) / "demo")
        large = random_model(Path(folder) / "large", hidden=256, layers=4)
        for name, model, ragged in (
            ("B8_demo", small, False),
            ("B8_ragged", large, True),
        ):
            theirs, ours = reversed(isolated(_against_bare, model, ragged))
            what = "tokens/s of a learner of one rank / a bare PyTorch loop, same micro-batches"
            line(name, what, ratios(theirs, ours), ">= 0.97")
        one = ranks_of(small, {"stage": 0}, 1)
        for stage, target in ((2, ">= 0.92"), (3, ">= 0.85")):
            two = ranks_of(small, {"stage": stage}, 2)
            both = in_turn(one.update, two.update)
            what = f"tokens/s of two ranks at ZeRO {stage}, a core each / twice one rank's"
            line(f"B8_zero{stage}", what, [a / b / 2 for a, b in zip(*both, strict=True)], target)
            two.close()
        one.close()


def isolated(work: Any, *args: Any) -> Any:
    """The result of work(*args, out) in a new process."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=work, args=(*args, out))
    process.start()
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                return out.get(timeout=1)
            if not process.is_alive() and out.empty():
                raise RuntimeError(f"{work.__name__} ended with exit code {process.exitcode}")
    finally:
        process.join(10)
        process.kill()


class Ranks:
    """Learner ranks in processes of their own, which update at a word."""

    def __init__(self, processes: list[Any]) -> None:
        self._processes = processes
        for _, _, answers in processes:
            answers.get(timeout=180)

    def update(self) -> None:
        for _, orders, _ in self._processes:
            orders.put(True)
        for _, _, answers in self._processes:
            answers.get(timeout=180)

    def close(self) -> None:
        for process, orders, _ in self._processes:
            orders.put(False)
            process.join(30)


def ranks_of(model: str, zero: dict[str, Any], ranks: int) -> Ranks:
    context = multiprocessing.get_context("spawn")
    port, processes = free_port(), []
    for rank in range(ranks):
        orders, answers = context.Queue(), context.Queue()
        target = (rank, ranks, port, model, zero, orders, answers)
        process = context.Process(target=_rank, args=target)
        process.start()
        processes.append((process, orders, answers))
    return Ranks(processes)


def _rank(
    rank: int, ranks: int, port: int, model: str, zero: Any, orders: Any, answers: Any
) -> None:
    learner = learner_of(model, rank=rank, ranks=ranks, port=port, zero=zero)
    [table] = tables_of(1)
    learner.update(table)
    answers.put(True)
    while orders.get():
        learner.update(table)
        answers.put(True)
    learner.close()


# -- packing --------------------------------------------------------------------------------------


def b9() -> None:
    """8,192 sequences with the lengths of long answers, 8 ranks, the work of a 1.5B model."""
    import numpy as np

    from learner.packing import Work, balanced, layout

    work = Work(linear=8.5e9, quadratic=5.2e5)
    density, imbalance, spent = [], [], []
    for seed in range(PAIRS):
        drawn = np.random.default_rng(seed).lognormal(5.5, 1.0, 8192)
        lengths = np.clip(drawn, 8, 4096).astype(np.int64)
        started = time.perf_counter()
        per_rank = balanced(lengths, np.arange(8192), ranks=8, budget=32_768, work=work)
        spent.append((time.perf_counter() - started) * 1e3)
        costs = np.array([[work.of(lengths[b]).sum() for b in batches] for batches in per_rank])
        imbalance.append(float((costs.max(axis=0) / costs.mean(axis=0)).max()))
        slots = 0
        for batch in (b for batches in per_rank for b in batches):
            sizes = lengths[batch].tolist()
            rows = layout(sizes, work)
            slots += len(rows) * max(sum(sizes[i] for i in row) for row in rows)
        density.append(int(lengths.sum()) / slots)
    line("B9_density", "real tokens / slots, rows of sdpa attention", density, ">= 0.99")
    line(
        "B9_imbalance", "FLOPs of the busiest rank / mean, worst micro-batch", imbalance, "<= 1.01"
    )
    line("B9_ms", "milliseconds to plan 8,192 sequences", spent, "<= 30")


# -- differences of weights -----------------------------------------------------------------------


def b7() -> None:
    """64M bfloat16 weights, normal with std 0.02, after a step of Adam's size that carries 1 % of
    them over a rounding boundary."""
    import numpy as np
    import torch

    from rollout.delta import apply, encode

    torch.manual_seed(0)
    whole = torch.randn(64 << 20) * 0.02
    old = whole.bfloat16().view(torch.uint16).numpy().copy()
    stepped = whole + 1.9e-7 * torch.randn_like(whole).sign() * (0.5 + torch.rand_like(whole))
    new = stepped.bfloat16().view(torch.uint16).numpy().copy()
    density = float((old != new).mean())
    difference = encode(old, new) or b""
    found = old.copy()
    apply(found, difference)
    if not np.array_equal(found, new):
        raise RuntimeError("a difference did not give the weights back to the bit")
    share = len(difference) / old.nbytes
    what = f"payload / weights, bit-exact, {density:.2%} of them changed"
    line("B7", what, [share * 100], "<= 0.8", unit="%")
    out = np.empty_like(old)

    def copies() -> None:
        np.copyto(out, old)
        np.copyto(out, new)

    both = in_turn(lambda: encode(old, new), copies, pairs=7)
    line("B7_encode", "seconds to compare and encode / of two memcpys", ratios(*both))


# -- Arrow ----------------------------------------------------------------------------------------


def b11() -> None:
    """A table of 256 completions of 1,000 tokens: to Arrow bytes and back."""
    import numpy as np
    import pyarrow as pa

    rows, length = 1024, 1000
    rng = np.random.default_rng(0)
    columns = {
        "prompt_ids": rng.integers(0, 1000, (rows, 100)).astype(np.int32),
        "completion_ids": rng.integers(0, 1000, (rows, length)).astype(np.int32),
        "behaviour_logprobs": rng.random((rows, length)).astype(np.float32),
        "policy_versions": np.zeros((rows, length), np.int32),
    }
    table = _as_table(columns)
    payload = sum(column.nbytes for column in columns.values())
    flat = np.concatenate([c.ravel().view(np.uint8) for c in columns.values()])
    out = np.empty_like(flat)
    sink = pa.allocate_buffer(payload + (1 << 20))

    def encode() -> None:
        stream = pa.FixedSizeBufferWriter(sink)
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)

    def copy() -> None:
        np.copyto(out, flat)

    encode_seconds, copy_seconds = in_turn(encode, copy)
    what = "bytes/s of Arrow's encoding of a table / of one memcpy"
    line("B11_encode", what, ratios(copy_seconds, encode_seconds), ">= 0.6")
    encode()
    micro = []
    for _ in range(PAIRS):
        started = time.perf_counter()
        read = pa.ipc.open_stream(sink).read_all()
        for name in columns:
            chunk = read[name].chunk(0)
            chunk.values.to_numpy(zero_copy_only=True)
            chunk.offsets.to_numpy()
        micro.append((time.perf_counter() - started) * 1e6)
    what = f"microseconds to views of a table of {payload / 2**20:.0f} MiB"
    line("B11_decode_us", what, micro, "<= 200")


def _as_table(columns: dict[str, Any]) -> Any:
    import numpy as np
    import pyarrow as pa

    arrays = {}
    for name, values in columns.items():
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        arrays[name] = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
    return pa.table(arrays)
