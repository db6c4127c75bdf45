"""How long sampling, training and publishing take: constants measured by `calibrate.py`, or a
roofline of accelerators that are not at hand. Formulas and sources: docs/planner.md.

Times are seconds, sizes bytes. `running` completions are decoded together; `context` is the tokens
that all of them attend to, summed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.config import RunConfig
from learner.algorithms import build
from learner.batch import plan
from learner.memory import Architecture
from learner.packing import Siblings, Work


@dataclass(frozen=True, slots=True)
class Model:
    """What planning needs to know of one."""

    sizes: Architecture
    work: Work
    packs: bool
    """Whether its sequences can share rows"""
    shares: bool
    """Whether siblings can share their prompt"""


@dataclass(frozen=True, slots=True)
class Table:
    """A step's table, of which only the lengths count."""

    groups_N: np.ndarray
    prompts_N: np.ndarray
    lengths_N: np.ndarray


class Costs(Protocol):
    latency: float
    """Of a group, beside the engine's own work: dispatch, answer, scoring"""
    per_step: float
    """Of the driver, between an update and the next"""
    push: float
    """Of a publish, what the learner takes part in while samplers go on"""
    exchange: float
    """Of a publish, the samplers' part beside the pause: staging, calls, the canary"""
    pause: float
    """Of a publish, while they stand still"""
    staged: bool
    """The learner need not wait for the samplers' part"""
    overlap: float
    """How much longer sampling and training take while both are at work: 1 on devices of their
    own"""

    def prefill(self, tokens: int, completions: int) -> float: ...

    def decode(self, running: int, context: float) -> float:
        """One step of an engine."""
        ...

    def update(self, table: Table) -> float: ...


@dataclass(frozen=True, slots=True)
class Volume:
    """What one epoch of an update computes on one rank."""

    micro_batches: int
    flops: float
    """Forward and backward, padding and the head included"""


def volume(config: RunConfig, model: Model, table: Table) -> Volume:
    """As the learner itself would cut this table (`learner/batch.py: plan`)."""
    whole_N = table.prompts_N + table.lengths_N
    siblings = Siblings(table.groups_N, table.prompts_N)
    [slices, *_] = plan(
        table.lengths_N,
        whole_N,
        np.arange(len(whole_N)),
        ranks=config.learner.ranks,
        micro_batch_tokens=config.learner.micro_batch_tokens,
        work=model.work if config.learner.packing and model.packs else None,
        siblings=siblings if model.shares else None,
    )
    flops = 0.0
    for part in slices:
        rows = whole_N[part.rows] if len(part.rows) else np.array([2])
        if part.layout == "shared":
            budget = config.learner.micro_batch_tokens
            families = siblings.families(whole_N, part.rows, budget=budget)
            rows = np.array([siblings.width(whole_N, family) for family in families])
        widths = rows if part.layout == "packed" else np.full(len(rows), rows.max())
        head = 6.0 * model.sizes.hidden * model.sizes.vocabulary
        flops += model.work.of(widths).sum() + head * table.lengths_N[part.rows].sum()
    return Volume(len(slices), float(flops))


# -- measured -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What `calibrate` found; linear in what they multiply."""

    latency: float
    per_step: float
    push: float
    exchange: float
    pause: float
    overlap: float
    per_decode_step: float
    per_decoded_token: float
    per_context_token: float
    per_prompt_token: float
    per_completion: float
    per_update: float
    per_micro_batch: float
    per_flop: float

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Constants":
        """Raises ValueError when the file is not what `write` writes."""
        try:
            return cls(**{k: float(v) for k, v in json.loads(path.read_text()).items()})
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"--constants {path} does not hold what `plan --measure` writes: {error}"
            ) from error


class Measured:
    """Costs of the machine that the constants were measured on, for any recipe of that model."""

    staged = True

    def __init__(self, constants: Constants, config: RunConfig, model: Model) -> None:
        self._of, self._config, self._model = constants, config, model
        self.latency, self.per_step = constants.latency, constants.per_step
        self.push, self.exchange, self.pause = constants.push, constants.exchange, constants.pause
        self.overlap = constants.overlap

    def prefill(self, tokens: int, completions: int) -> float:
        return tokens * self._of.per_prompt_token + completions * self._of.per_completion

    def decode(self, running: int, context: float) -> float:
        tokens = running * self._of.per_decoded_token + context * self._of.per_context_token
        return self._of.per_decode_step + tokens

    def update(self, table: Table) -> float:
        of, found = self._of, volume(self._config, self._model, table)
        epochs = self._config.learner.algorithm.epochs
        each = found.micro_batches * of.per_micro_batch + found.flops * of.per_flop
        return of.per_update + epochs * each


# -- modelled -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """Figures of the data sheets: dense bfloat16 FLOP/s; bytes; bytes/s of its memory, to the other
    GPUs of its node, and to other nodes."""

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float


GPUS = {
    "a100": Gpu(312e12, 80e9, 2.04e12, 300e9, 25e9),
    "h100": Gpu(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h200": Gpu(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "b200": Gpu(2250e12, 180e9, 8.0e12, 900e9, 50e9),
    "l40s": Gpu(362e12, 48e9, 0.864e12, 32e9, 12.5e9),
}
DECODES, COMPUTES, TRAINS, SENDS = 0.65, 0.50, 0.35, 0.20
"""Assumed shares of a GPU's figures that systems of this kind reach: of its bandwidth in decoding,
of its FLOP/s in prefill and in training, of its network in publishing. Where they come from:
docs/planner.md."""
HOST = 1.5e-3
"""Of a decode step, outside the GPU."""
BYTES = 2


class Modelled:
    """Costs of a cluster of GPUs that is not at hand."""

    staged = False

    def __init__(self, gpu: Gpu, config: RunConfig, model: Model, *, per_node: int = 8) -> None:
        self._gpu, self._config, self._model, self._sizes = gpu, config, model, model.sizes
        ranks, engines = config.learner.ranks, config.sampler.replicas
        devices = ranks + engines * config.sampler.tensor_parallel
        between_ranks = gpu.link if ranks <= per_node else gpu.network
        self._wire = between_ranks * SENDS
        self._width = config.sampler.tensor_parallel
        weights = BYTES * model.sizes.parameters
        self.latency, self.per_step, self.overlap = 0.05, 0.05, 1.0
        self.push, self.exchange = weights / self._wire, 0.0
        self.pause = weights / ((gpu.link if devices <= per_node else gpu.network) * SENDS)

    def prefill(self, tokens: int, completions: int) -> float:
        flops = 2.0 * self._sizes.parameters * tokens
        return flops / (self._width * self._gpu.flops * COMPUTES)

    def decode(self, running: int, context: float) -> float:
        read = BYTES * self._sizes.parameters + context * kv_bytes(self._sizes)
        moved = read / (self._width * self._gpu.bandwidth * DECODES)
        flops = 2.0 * self._sizes.parameters * running
        return max(moved, flops / (self._width * self._gpu.flops * COMPUTES)) + HOST

    def update(self, table: Table) -> float:
        """Recomputing activations is a third more FLOPs; a forward pass for an anchor, a reference
        or a critic's values one third, once; the critic's own training as much as the policy's.
        Then, for each optimizer step, ZeRO's traffic and AdamW."""
        learner, algorithm = self._config.learner, self._config.learner.algorithm
        found = volume(self._config, self._model, table)
        models = 1 + build(algorithm).critic
        looks = (algorithm.anchor == "recomputed") + (algorithm.kl.coef > 0) + models - 1
        trained = algorithm.epochs * models * (1 + self._config.model.gradient_checkpointing / 3)
        seconds = found.flops * (trained + looks / 3) / (self._gpu.flops * TRAINS)
        steps, ranks = algorithm.epochs * algorithm.minibatches * models, learner.ranks
        if ranks > 1:
            passes = 3 * found.micro_batches * models if learner.zero.stage == 3 else 2 * steps
            seconds += passes * BYTES * self._sizes.parameters / self._wire
        shard = 1 if learner.zero.stage == 0 else ranks
        return seconds + steps * 30.0 * self._sizes.parameters / shard / self._gpu.bandwidth


def kv_bytes(model: Architecture) -> float:
    """Keys and values of one token."""
    return 2.0 * model.layers * model.kv * BYTES
