"""What one GPU gives the learner and the weight push, as ratios to what the same GPU does at best.

    python benchmarks/gpu.py [--only G1,G3] [--device cpu --small]

Needs torch, transformers, numpy and pyarrow; DeepSpeed where it is there; no network. Measures its
own ceilings first (a matrix product of random numbers, a copy), then prints a JSON line for each of
G1 to G14: name, what, ratio or figures, target, ok. One that fails says why, and the others go on.
With `--device cpu --small` the same code runs on tiny sizes, to see that it runs: its figures mean
nothing, and no target is held against them.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from learner.batch import Rows, ask, collate
from learner.model import Policy, quiet
from learner.packing import Work

DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 FLOP/s, without sparsity."""
CHUNK = 1 << 24
"""Logits at once: `learner.logits_chunk`."""


@dataclass(frozen=True)
class Size:
    """Of a decoder like Qwen's; `billions` is its name."""

    billions: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int = 151_936
    tied: bool = True

    @property
    def weights(self) -> int:
        """Those that a token is multiplied with: without the embedding, with the head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.feed_forward
        return self.layers * layer + self.hidden * self.vocabulary

    def flops(self, lengths: list[int], times: int) -> float:
        """Of causal sequences; `times` is 2 for a forward pass, 6 with a backward one, 8 when it is
        computed again: performance.md, section 3.3."""
        attention = self.layers * self.heads * self.head_dim
        return times * (self.weights * sum(lengths) + attention * sum(n * n for n in lengths))


SMALL_ONE = Size("1.5B", 1536, 28, 12, 2, 128, 8960)
LARGE_ONE = Size("4B", 2560, 36, 32, 8, 128, 9728)
TINY = Size("tiny", 64, 2, 2, 1, 32, 96, vocabulary=512)


@dataclass
class Bench:
    device: torch.device
    small: bool
    gemm: float = 0.0
    """FLOP/s of the matrix product"""
    copy: float = 0.0
    """bytes/s of a copy on the device: a byte is read and written"""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def datasheet(self) -> float:
        """The chip's, or what the matrix product reached where the chip is not in the list."""
        name = torch.cuda.get_device_name(self.device) if self.cuda else ""
        return next((flops for chip, flops in DATASHEET.items() if chip in name), self.gemm)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], times: int = 5, warm: int = 2) -> float:
        """Median."""
        for _ in range(1 if self.small else warm):
            work()
        taken = []
        for _ in range(1 if self.small else times):
            self.sync()
            began = time.perf_counter()
            work()
            self.sync()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes that the work needed beyond what was there before; 0 where nobody counts them."""
        if not self.cuda:
            work()
            return 0
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.sync()
        return torch.cuda.max_memory_allocated(self.device) - before

    def bytes(self, on_gpu: float) -> int:
        return 1 << 20 if self.small else int(on_gpu)

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)

    def lengths(self, count: int, mean: float, longest: int) -> list[int]:
        """Lognormal with sigma 1."""
        rng = np.random.default_rng(0)
        drawn = rng.lognormal(math.log(mean) - 0.5, 1.0, count)
        return [int(n) for n in drawn.clip(8, longest)]

    def size(self, wanted: Size) -> Size:
        return TINY if self.small else wanted

    @contextmanager
    def policy(
        self, size: Size, *, recompute: bool = False, attention: str = "sdpa"
    ) -> Iterator[Policy]:
        """With random weights in bfloat16, in training."""
        from transformers import AutoModelForCausalLM, Qwen3Config

        config = Qwen3Config(
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.head_dim,
            intermediate_size=size.feed_forward,
            vocab_size=size.vocabulary,
            tie_word_embeddings=size.tied,
            max_position_embeddings=1 << 17,
        )
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention
            )
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        policy = Policy(model, temperature=1.0, logits_chunk=CHUNK)
        try:
            yield policy
        finally:
            del policy, model
            self.free()

    def free(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()


class Adam:
    """bfloat16 weights, float32 masters: what ZeRO keeps on one rank."""

    def __init__(self, parameters: list[nn.Parameter], cuda: bool) -> None:
        self.parameters = parameters
        self.masters = [parameter.detach().float() for parameter in parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-6, fused=cuda)

    def step(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        self.optimizer.step()
        torch._foreach_copy_([p.data for p in self.parameters], self.masters)


def rows_of(lengths: list[int], prompts: list[int], groups: list[int], vocabulary: int) -> Rows:
    """A table of random tokens, all of whose completions are trained."""
    rng, width = np.random.default_rng(0), max(n - p for n, p in zip(lengths, prompts, strict=True))
    count = len(lengths)
    mask_NT = np.arange(width) < (np.array(lengths) - np.array(prompts))[:, None]
    beginnings = {g: rng.integers(0, vocabulary, max(prompts)).astype(np.int32) for g in {*groups}}
    return Rows(
        tokens=[
            np.concatenate([beginnings[g][:p], rng.integers(0, vocabulary, n - p).astype(np.int32)])
            for n, p, g in zip(lengths, prompts, groups, strict=True)
        ],
        prompt_lengths_N=np.array(prompts),
        mask_NT=mask_NT,
        trains_NT=mask_NT,
        behaviour_NT=np.zeros(mask_NT.shape, dtype=np.float32),
        rewards_N=rng.random(count),
        groups_N=np.array(groups),
        greedy_N=np.full(count, np.nan),
        versions_NT=np.zeros(mask_NT.shape, dtype=np.int32),
        rounds_N=np.zeros(count, dtype=np.int32),
        steps_NT=None,
        left_out=0,
    )


def loss_of(logp: Tensor, trains: Tensor) -> Tensor:
    """GRPO's with one advantage for all tokens: the ratio to the detached policy, token mean."""
    return -((logp - logp.detach()).exp() * trains).sum() / trains.sum()


def update(policy: Policy, batch: Any, positions: int) -> None:
    logp, _ = ask(policy, batch, positions)
    loss_of(logp, batch.trains_ST).backward()


def packed(bench: Bench, length: int, vocabulary: int) -> tuple[Any, int]:
    """One sequence of that length, all but its first token trained."""
    rows = rows_of([length], [1], [0], vocabulary)
    return collate(rows, rows.trains_NT, np.array([0]), bench.device), length - 1


# -- the learner ----------------------------------------------------------------------------------


def bare_step(bench: Bench, policy: Policy, batch: Any, positions: int) -> Callable[[], None]:
    """An update in plain PyTorch."""
    adam = Adam(list(policy.parameters()), bench.cuda)

    def step() -> None:
        update(policy, batch, positions)
        adam.step()

    return step


def training(bench: Bench, wanted: Size, *, recompute: bool) -> dict[str, Any]:
    size = bench.size(wanted)
    length = 256 if bench.small else 16_384
    with bench.policy(size, recompute=recompute) as policy:
        step = bare_step(bench, policy, *packed(bench, length, size.vocabulary))
        taken = bench.seconds(step)
        flops = size.flops([length], 8 if recompute else 6) / taken
        return {
            "ratio": flops / bench.datasheet,
            "of_gemm": flops / bench.gemm,
            "tokens_per_s": length / taken,
            "peak_gb": bench.peak(step) / 1e9,
        }


def g1(bench: Bench) -> dict[str, Any]:
    """MFU of a GRPO update, 16k tokens in one row, no recompute"""
    found = {size.billions: training(bench, size, recompute=False) for size in BOTH}
    return {"ratio": found["1.5B"]["ratio"], "target": ">= 0.50", **found}


def g2(bench: Bench) -> dict[str, Any]:
    """the same with every layer computed again: hardware FLOPs, 8N"""
    found = {size.billions: training(bench, size, recompute=True) for size in BOTH}
    return {"ratio": found["1.5B"]["ratio"], "target": ">= 0.60", **found}


BOTH = (SMALL_ONE, LARGE_ONE)


def g3(bench: Bench) -> dict[str, Any]:
    """memory of logprob, entropy and gradient at 32k tokens, in chunks; time where both fit"""
    size = bench.size(SMALL_ONE)
    many, few = (512, 256) if bench.small else (32_768, 8_192)
    head = nn.Linear(size.hidden, size.vocabulary, bias=False, device=bench.device).bfloat16()

    def pass_over(count: int, chunk: int) -> Callable[[], None]:
        hidden = torch.randn(count, size.hidden, device=bench.device, dtype=torch.bfloat16)
        hidden.requires_grad_()
        targets = torch.randint(size.vocabulary, (count,), device=bench.device)
        policy = Policy(Headed(head, size.vocabulary), temperature=1.0, logits_chunk=chunk)
        trains = torch.ones(1, count, dtype=torch.bool, device=bench.device)

        def work() -> None:
            hidden.grad = head.weight.grad = None
            logp, _ = policy(hidden[None], trains, targets[None], positions=count)
            loss_of(logp, trains).backward()

        return work

    chunked = bench.peak(pass_over(many, CHUNK))
    whole_memory = bench.peak(pass_over(few, 1 << 62)) * (many / few)
    whole = bench.seconds(pass_over(few, 1 << 62))
    parts = bench.seconds(pass_over(few, CHUNK))
    return {
        "ratio": parts / whole,
        "target": "<= 1.03",
        "chunked_gb": chunked / 1e9,
        "whole_gb": whole_memory / 1e9,
        "times_less": whole_memory / max(chunked, 1),
        "memory_target": "chunked_gb <= 1.7, times_less >= 30",
    }


class Headed(nn.Module):
    """A model that is only its head."""

    def __init__(self, head: nn.Linear, vocabulary: int) -> None:
        super().__init__()
        self.head = head
        self.config = type("Config", (), {"vocab_size": vocabulary})

    def get_decoder(self) -> Callable[..., tuple[Tensor]]:
        return lambda input_ids, **_: (input_ids,)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def g4(bench: Bench) -> dict[str, Any]:
    """packed against padded, 64 sequences of lognormal length: speed-up / ratio of slots"""
    size = bench.size(SMALL_ONE)
    count, mean, longest = (6, 24, 64) if bench.small else (64, 1024, 8192)
    lengths = bench.lengths(count, mean, longest)
    rows = rows_of(lengths, [1] * count, list(range(count)), size.vocabulary)
    budget = 4 * max(lengths)
    order = np.argsort(lengths)
    found: dict[str, Any] = {}
    for attention in ("sdpa", *(["flex_attention"] if bench.cuda else [])):
        with bench.policy(size, recompute=not bench.small, attention=attention) as policy:
            work = Work.of_model(policy.model.config)

            def passes(packs: bool, policy: Policy = policy, work: Work = work) -> None:
                """In micro-batches of `budget` slots."""
                at, width = 0, max(lengths)
                while at < count:
                    taken, slots = at, 0
                    while taken < count and (
                        slots + (lengths[order[taken]] if packs else width) <= budget or taken == at
                    ):
                        slots += lengths[order[taken]] if packs else width
                        taken += 1
                    part = order[at:taken]
                    given = {"work": work, "budget": budget, "varlen": True} if packs else {}
                    batch = collate(rows, rows.trains_NT, part, bench.device, **given)
                    update(policy, batch, sum(lengths))
                    at = taken

            padded, together = (
                bench.seconds(lambda packs=packs: passes(packs), times=3, warm=1)
                for packs in (False, True)
            )
            slots = count * max(lengths) / sum(lengths)
            found[attention] = {"ratio": padded / together / slots, "speed_up": padded / together}
    best = max(each["ratio"] for each in found.values())
    return {"ratio": best, "target": ">= 0.95", "slots": slots, **found}


def g8(bench: Bench) -> dict[str, Any]:
    """AdamW on 4B weights: bytes that must move / time / copy"""
    size = bench.size(LARGE_ONE)
    parameters = [nn.Parameter(each) for each in tensors(bench, size.weights, torch.bfloat16)]
    adam = Adam(parameters, bench.cuda)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    gradients = [parameter.grad for parameter in parameters]

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    taken = bench.seconds(step)
    moved = 30 * sum(parameter.numel() for parameter in parameters)
    return {"ratio": moved / taken / (2 * bench.copy), "target": ">= 0.80", "seconds": taken}


def tensors(bench: Bench, weights: int, dtype: torch.dtype, most: int = 1 << 26) -> list[Tensor]:
    """Of random numbers, as a model has them: many, none very large."""
    counts = [most] * (weights // most) + [weights % most] * (weights % most > 0)
    return [torch.randn(n, device=bench.device, dtype=torch.float32).to(dtype) for n in counts]


def g9(bench: Bench) -> dict[str, Any]:
    """MFU of a forward pass that asks for logprobs, and what leaving it out gains"""
    size, length = bench.size(SMALL_ONE), 256 if bench.small else 16_384
    gains = {}
    for recompute in (True, False):
        with bench.policy(size, recompute=recompute) as policy:
            batch, positions = packed(bench, length, size.vocabulary)

            def look(policy: Policy = policy, batch: Any = batch, count: int = positions) -> None:
                with torch.no_grad():
                    ask(policy, batch, count)

            def learn(policy: Policy = policy, batch: Any = batch, count: int = positions) -> None:
                update(policy, batch, count)

            looked, learned = bench.seconds(look), bench.seconds(learn)
            gains["recompute" if recompute else "no_recompute"] = (looked + learned) / learned
    mfu = size.flops([length], 2) / looked / bench.datasheet
    return {
        "ratio": mfu,
        "target": ">= 0.65",
        "gain": gains,
        "gain_target": "recompute >= 1.18, no_recompute >= 1.24",
    }


def g10(bench: Bench) -> dict[str, Any]:
    """siblings that share their prompt: 1k + 1k tokens, 16 of them, against each on its own"""
    size = bench.size(SMALL_ONE)
    length, group = (32, 4) if bench.small else (1024, 16)
    rows = rows_of([2 * length] * group, [length] * group, [0] * group, size.vocabulary)
    every, sums = np.arange(group), []
    with bench.policy(size, recompute=not bench.small) as policy:
        weights = policy.model.get_decoder().layers[0].self_attn.q_proj.weight
        taken = []
        for shares in (False, True):
            batch = collate(rows, rows.trains_NT, every, bench.device, shares=shares)

            def step(batch: Any = batch) -> None:
                policy.zero_grad(set_to_none=True)
                update(policy, batch, group * length)

            taken.append(bench.seconds(step, times=3, warm=1))
            sums.append(weights.grad.float().clone())
    apart = float((sums[0] - sums[1]).norm() / sums[0].norm())
    return {
        "ratio": taken[0] / taken[1],
        "target": ">= 1.70",
        "limit": 2 * group / (1 + group),
        "gradient_gap": apart,
        "gradient_target": "<= 0.02 in bfloat16",
    }


def g13(bench: Bench) -> dict[str, Any]:
    """tokens/s of our engine under DeepSpeed ZeRO, world 1 / bare torch"""
    if importlib.util.find_spec("deepspeed") is None:
        return {"left_out": "DeepSpeed is not installed"}
    from bench_learner import free_port

    from learner.config import LearnerConfig
    from learner.engine import Engine, Placement, join, leave

    size, length = bench.size(SMALL_ONE), 256 if bench.small else 16_384
    found = {}
    with bench.policy(size) as policy:
        batch, positions = packed(bench, length, size.vocabulary)
        alone = bench.seconds(bare_step(bench, policy, batch, positions))
    placement = Placement(
        rank=0,
        ranks=1,
        address="127.0.0.1",
        port=free_port(),
        collectives="nccl" if bench.cuda else "gloo",
        dtype=torch.bfloat16,
    )
    join(placement)
    for stage in (1, 2, 3):
        with bench.policy(size) as policy:
            config = LearnerConfig.model_validate({"zero": {"stage": stage}})
            engine = Engine(policy, config, placement)

            def step(engine: Engine = engine) -> None:
                logp, _ = ask(engine.forward, batch, positions)
                engine.backward(loss_of(logp, batch.trains_ST))
                engine.step(1e-6)

            found[f"zero{stage}"] = alone / bench.seconds(step)
            del engine
    leave()
    return {"ratio": found["zero1"], "target": ">= 0.97", **found}


# -- weights --------------------------------------------------------------------------------------


def g5(bench: Bench) -> dict[str, Any]:
    """15 GB of weights to another process over CUDA IPC, in buckets: bytes/s / copy"""
    if not bench.cuda:
        return {"left_out": "CUDA IPC needs CUDA"}
    bucket, count = 512 << 20, 30
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=receive, args=(there, bucket, str(bench.device)), daemon=True)
    process.start()
    try:
        from torch.multiprocessing.reductions import reduce_tensor

        buckets = [
            torch.randint(255, (bucket,), dtype=torch.uint8, device=bench.device)
            for _ in range(count)
        ]
        bench.sync()
        here.send([reduce_tensor(each) for each in buckets])
        if not here.poll(120):
            raise RuntimeError("the second process said nothing within 120 s")
        found = here.recv()
        if "error" in found:
            return {"left_out": f"CUDA IPC was refused: {found['error']}"}
        wanted = sum(int(each[:64].sum()) for each in buckets)
        if found["check"] != wanted:
            raise RuntimeError("what arrived is not what was sent")
    finally:
        here.close()
        process.join(20)
        process.kill()
    taken = statistics.median(found["seconds"])
    return {
        "ratio": bucket * count / taken / bench.copy,
        "target": ">= 0.85",
        "seconds": taken,
        "us_per_bucket_opened": 1e6 * found["opened"] / count,
    }


def receive(pipe: Any, bucket: int, device: str) -> None:
    try:
        torch.cuda.set_device(device)
        handles = pipe.recv()
        began = time.perf_counter()
        theirs = [rebuild(*arguments) for rebuild, arguments in handles]
        opened = time.perf_counter() - began
        ours = [torch.empty(bucket, dtype=torch.uint8, device=device) for _ in theirs]
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            began = time.perf_counter()
            torch._foreach_copy_(ours, theirs)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        check = sum(int(each[:64].sum()) for each in ours)
        pipe.send({"seconds": seconds, "opened": opened, "check": check})
    except Exception as error:
        pipe.send({"error": str(error)[:500]})


def g6(bench: Bench) -> dict[str, Any]:
    """weights through pinned host memory, down and up at once: bytes/s / the slower way alone"""
    size = bench.bytes(4e9)
    device = torch.empty(size, dtype=torch.uint8, device=bench.device)
    other, host, back = torch.empty_like(device), bench.pinned(size), bench.pinned(size)
    down = bench.seconds(lambda: host.copy_(device, non_blocking=True))
    up = bench.seconds(lambda: other.copy_(back, non_blocking=True))
    streams = [torch.cuda.Stream() for _ in range(2)] if bench.cuda else []

    def both() -> None:
        if not streams:
            host.copy_(device)
            other.copy_(back)
            return
        with torch.cuda.stream(streams[0]):
            host.copy_(device, non_blocking=True)
        with torch.cuda.stream(streams[1]):
            other.copy_(back, non_blocking=True)

    together = bench.seconds(both)
    return {
        "ratio": max(down, up) / together,
        "target": ">= 0.90",
        "down_gb_s": size / down / 1e9,
        "up_gb_s": size / up / 1e9,
    }


def g7(bench: Bench) -> dict[str, Any]:
    """what changed between two versions of 7B bfloat16 weights, 1 % of them, found and compacted"""
    weights = 1 << 16 if bench.small else 7_600_000_000
    old = tensors(bench, weights, torch.bfloat16, most=1 << 28)
    new = [each.clone() for each in old]
    for each in new:
        each.view(torch.int16)[::100] += 1
    found: list[tuple[Tensor, Tensor]] = []

    def detect() -> None:
        found.clear()
        for before, after in zip(old, new, strict=True):
            places = (before.view(torch.int16) != after.view(torch.int16)).nonzero().flatten()
            found.append((places.to(torch.int32), after.view(torch.int16)[places]))

    taken = bench.seconds(detect)
    for before, (places, values) in zip(old, found, strict=True):
        before.view(torch.int16)[places.long()] = values
    exact = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    read = 4 * weights
    return {
        "ratio": read / taken / (2 * bench.copy),
        "target": "",
        "seconds": taken,
        "seconds_target": "<= 0.010 for 7.6B",
        "density": sum(len(places) for places, _ in found) / weights,
        "bit_exact": exact,
    }


def g11(bench: Bench) -> dict[str, Any]:
    """a step's table, 14 bytes a token, from Arrow to the GPU: seconds / seconds of a step"""
    import pyarrow as pa

    tokens = 4_096 if bench.small else 1_000_000
    columns = {
        "tokens": np.zeros(tokens, dtype=np.int32),
        "logprobs": np.zeros(tokens, dtype=np.float32),
        "versions": np.zeros(tokens, dtype=np.int32),
        "mask": np.zeros(tokens, dtype=np.int16),
    }
    table = pa.table(columns)

    def feed() -> None:
        for name in columns:
            array = table[name].chunk(0).to_numpy(zero_copy_only=True)
            torch.from_numpy(array.copy()).to(bench.device, non_blocking=True)

    taken = bench.seconds(feed)
    step = tokens / bench.notes.get("tokens_per_s", 14_000.0)
    return {"ratio": taken / step, "target": "<= 0.005", "seconds": taken}


def g12(bench: Bench) -> dict[str, Any]:
    """the optimizer's states of a 4B model to the host and back, of which 8 GB are moved"""
    size = bench.bytes(8e9)
    states = torch.empty(size, dtype=torch.uint8, device=bench.device)
    host = bench.pinned(size)
    down = bench.seconds(lambda: host.copy_(states, non_blocking=True), times=3)
    up = bench.seconds(lambda: states.copy_(host, non_blocking=True), times=3)
    whole = 48e9 / size
    return {
        "ratio": None,
        "seconds_down": down * whole,
        "seconds_up": up * whole,
        "seconds_target": "<= 1.05 each way",
    }


# -- decoding -------------------------------------------------------------------------------------


def g14(bench: Bench) -> dict[str, Any]:
    """a decode step in a CUDA graph: weights and cache read / time / bandwidth"""
    from transformers import StaticCache

    size = bench.size(SMALL_ONE)
    context = 64 if bench.small else 2048
    found = {}
    with bench.policy(size) as policy, torch.no_grad():
        model = policy.model.eval()
        for count in (1, 4) if bench.small else (1, 8, 64):
            cache = StaticCache(model.config, max_cache_len=context)
            tokens = torch.zeros(count, 1, dtype=torch.long, device=bench.device)
            places = torch.tensor([context - 1], device=bench.device)

            def decode(
                tokens: Tensor = tokens, cache: Any = cache, places: Tensor = places
            ) -> Tensor:
                return model(
                    input_ids=tokens,
                    past_key_values=cache,
                    cache_position=places,
                    position_ids=places[None].expand(len(tokens), -1),
                    use_cache=True,
                ).logits

            run: Callable[[], Any] = decode
            if bench.cuda:
                run = graphed(decode)
            taken = bench.seconds(run, times=20)
            cached = 2 * size.layers * size.kv_heads * size.head_dim * 2 * context * count
            read = 2 * size.weights + cached
            found[f"b{count}"] = {"mbu": read / taken / (2 * bench.copy), "seconds": taken}
    worst = min(each["mbu"] for each in found.values())
    return {"ratio": worst, "target": ">= 0.70", **found}


def graphed(work: Callable[[], Any]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


# -- all of them ----------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "G1": g1,
    "G2": g2,
    "G3": g3,
    "G4": g4,
    "G5": g5,
    "G6": g6,
    "G7": g7,
    "G8": g8,
    "G9": g9,
    "G10": g10,
    "G11": g11,
    "G12": g12,
    "G13": g13,
    "G14": g14,
}


def ceilings(bench: Bench) -> None:
    """Of random numbers: zeros are multiplied faster."""
    side = 256 if bench.small else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.gemm = 2 * side**3 / bench.seconds(lambda: a @ b, times=20)
    source = torch.empty(bench.bytes(4e9), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.copy = len(source) / bench.seconds(lambda: target.copy_(source), times=20)


def holds(ratio: float, target: str) -> bool:
    sign, bound = target.split()
    return ratio >= float(bound) if sign == ">=" else ratio <= float(bound)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(MEASURES)
    if unknown := [name for name in names if name not in MEASURES]:
        raise SystemExit(f"{', '.join(unknown)}: none of {', '.join(MEASURES)}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA here: --device cpu --small shows that the script runs")
    quiet()
    bench = Bench(torch.device(given.device), given.small)
    ceilings(bench)
    machine = torch.cuda.get_device_name(bench.device) if bench.cuda else "CPU"
    found = {"gemm_tflops": bench.gemm / 1e12, "copy_tb_s": bench.copy / 1e12}
    print(json.dumps({"name": "ceilings", "machine": machine, "torch": torch.__version__, **found}))
    failed = 0
    for name in names:
        began = time.perf_counter()
        measure = MEASURES[name]
        shown: dict[str, Any] = {"name": name, "what": measure.__doc__}
        try:
            shown |= measure(bench)
        except Exception as error:  # of memory, of a kernel: the others are worth having
            shown["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
            failed += 1
        ratio, target = shown.get("ratio"), shown.get("target")
        if ratio is not None and target and not bench.small:
            shown["ok"] = holds(ratio, target)
        if name == "G1" and "1.5B" in shown:
            bench.notes["tokens_per_s"] = shown["1.5B"]["tokens_per_s"]
        shown["took"] = round(time.perf_counter() - began, 1)
        print(json.dumps(shown), flush=True)
        bench.free()
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
