"""`python -m cluster plan`: what a cluster will give a recipe, and how to split it.

Memory per role by formula, time by the simulator (`simulate.py`) on measured constants or on a
roofline of the named GPU.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.config import RunConfig
from cluster.planner.costs import (
    BYTES,
    GPUS,
    Constants,
    Gpu,
    Measured,
    Model,
    Modelled,
    Table,
    kv_bytes,
)
from cluster.planner.simulate import Forecast, Workload, simulate
from learner.algorithms import build
from learner.memory import Architecture, activations, frozen, states
from learner.packing import Work, can_pack, can_share

ROOM = 0.9
"""Share of a GPU's memory that weights, caches and activations may fill."""
GIB = 1 << 30
ASSUMED = 0.25
"""Mean length of a completion as a share of the longest, where nothing was recorded."""


@dataclass(frozen=True, slots=True)
class Split:
    """One way to use the cluster."""

    config: RunConfig
    learner_gib: float
    sampler_gib: float
    """Of each GPU: weights, and keys and values of all completions it may run at once"""
    forecast: Forecast | None
    """None where it does not fit"""

    @property
    def devices(self) -> str:
        sampler = self.config.sampler
        width = f" x {sampler.tensor_parallel}" if sampler.tensor_parallel > 1 else ""
        return f"{self.config.learner.ranks} learners + {sampler.replicas}{width} samplers"


def describe(path: str) -> Model:
    """Sizes of a model, without its weights. Raises ValueError when there is none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not path:
        raise ValueError(
            "model.path is not set: a folder with a Hugging Face checkpoint, or a hub id (a recipe "
            "that prepares its model has none before it is trained)"
        )
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"model.path={path!r} holds no model: {first}") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = Architecture.of(config, parameters=sum(p.numel() for p in model.parameters()))
    return Model(sizes, Work.of_model(config), packs=can_pack(config), shares=can_share(config))


def workload(config: RunConfig, *, like: str, mean_length: float) -> tuple[Workload, str]:
    """Lengths to plan with, and where they come from."""
    if like:
        load = Workload.recorded(Path(like))
        return load, f"as recorded in {like}, {load.mean_length:.0f} tokens on average"
    longest = config.sampler.sampling.max_tokens
    mean = mean_length or ASSUMED * longest
    if not 0 < mean <= longest:
        raise ValueError(
            f"--mean-length {mean:g} is not within sampler.sampling.max_tokens={longest}"
        )
    load = Workload.lognormal(
        prompt=config.prompts.max_tokens // 2,
        mean=mean,
        most=longest,
        size=config.sampler.group_size,
    )
    told = "" if mean_length else " (assumed: --mean-length N, or --like RUN for recorded ones)"
    cut = f"mean {mean:.0f}, {load.mean_length:.0f} once cut at {longest}"
    return load, f"lognormal, sigma 1, {cut}{told}"


def splits(config: RunConfig, model: Architecture, gpu: Gpu, gpus: int) -> list[RunConfig]:
    """Learner ranks from few to many, all other GPUs sampling; those whose rows divide."""
    width = config.sampler.tensor_parallel
    rows = config.schedule.groups_per_step * config.sampler.group_size
    found = []
    for ranks in range(1, gpus - width + 1):
        if rows % ranks or (gpus - ranks) % width:
            continue
        found.append(_shaped(config, ranks, (gpus - ranks) // width))
    return [split for split in found if learner_bytes(split, model) <= ROOM * gpu.memory] or found


def _shaped(config: RunConfig, ranks: int, replicas: int) -> RunConfig:
    learner = config.learner.model_copy(update={"ranks": ranks})
    sampler = config.sampler.model_copy(update={"replicas": replicas})
    return config.model_copy(update={"learner": learner, "sampler": sampler})


def learner_bytes(config: RunConfig, model: Architecture) -> float:
    """On each rank: states, a critic's too, a reference, what a forward pass keeps."""
    learner, stage = config.learner, config.learner.zero.stage
    trained, kept = model.parameters, 0.0
    if rank := config.model.lora.rank:  # on every linear layer
        each = rank * (8 * model.hidden + 3 * (model.hidden + model.intermediate))
        kept, trained = frozen(trained, ranks=1, sharded=False, width=BYTES), model.layers * each
    models = 1 + build(learner.algorithm).critic
    kept += models * sum(states(trained, ranks=learner.ranks, stage=stage, width=BYTES).values())
    if learner.algorithm.kl.coef and learner.algorithm.kl.reference in ("copy", "sharded"):
        sharded = learner.algorithm.kl.reference == "sharded"
        kept += frozen(model.parameters, ranks=learner.ranks, sharded=sharded, width=BYTES)
    return kept + activations(
        model,
        max(learner.micro_batch_tokens, config.max_model_len),
        width=BYTES,
        checkpointing=config.model.gradient_checkpointing,
        logits=learner.logits_chunk,
    )


def sampler_bytes(config: RunConfig, model: Architecture, load: Workload) -> float:
    """On each GPU of an engine."""
    sampler = config.sampler
    each = config.prompts.max_tokens + min(2 * load.mean_length, sampler.sampling.max_tokens)
    cache = sampler.max_running * each * kv_bytes(model)
    return (BYTES * model.parameters + cache) / sampler.tensor_parallel


MOST = 6
"""Splits that are simulated: those whose slower side is quickest."""


def best_first(
    config: RunConfig, model: Model, load: Workload, *, gpu: Gpu, gpus: int, per_node: int = 8
) -> list[Split]:
    """The splits of `gpus` GPUs, quickest first. Raises ValueError when there is none."""
    if config.sampler.tensor_parallel > per_node:
        raise ValueError(
            f"sampler.tensor_parallel={config.sampler.tensor_parallel} is more than the {per_node} "
            "GPUs of a node: lower it"
        )
    candidates = splits(config, model.sizes, gpu, gpus)
    if not candidates:
        rows = config.schedule.groups_per_step * config.sampler.group_size
        raise ValueError(
            f"{gpus} GPUs cannot be split into learner ranks that divide the {rows} rows of a step "
            f"and samplers of {config.sampler.tensor_parallel} GPUs each: change one of them"
        )

    def costs(split: RunConfig) -> Modelled:
        return Modelled(gpu, split, model, per_node=per_node)

    nearest = sorted(candidates, key=lambda split: _bottleneck(split, costs(split), load))[:MOST]
    found = [_looked_at(split, model, costs(split), load, gpu) for split in nearest]
    return sorted(found, key=lambda s: s.forecast.step_seconds if s.forecast else float("inf"))


def _bottleneck(config: RunConfig, costs: Modelled, load: Workload) -> float:
    """Seconds of a step of whoever is slower, samplers or learner, if nobody ever waited."""
    sampler = config.sampler
    rows = config.schedule.groups_per_step * sampler.group_size
    running = min(sampler.max_running, max(1, rows // sampler.replicas))
    context = running * (load.prompts[0] + load.mean_length / 2)
    sampling = rows * load.mean_length * costs.decode(running, context) / running / sampler.replicas
    groups_N = np.arange(rows) // sampler.group_size
    lengths_N = np.resize(np.concatenate([np.array(group) for group in load.lengths]), rows)
    learning = costs.update(Table(groups_N, np.full(rows, load.prompts[0]), lengths_N))
    return max(sampling, learning)


def _looked_at(config: RunConfig, model: Model, costs: Modelled, load: Workload, gpu: Gpu) -> Split:
    learner, sampler = learner_bytes(config, model.sizes), sampler_bytes(config, model.sizes, load)
    fits = max(learner, sampler) <= ROOM * gpu.memory
    forecast = simulate(config, costs, load) if fits else None
    return Split(config, learner / GIB, sampler / GIB, forecast)


TIMES = (
    f"{'':<34}{'step':>9}{'compl./s':>10}{'samplers idle':>15}{'learner idle':>14}{'staleness':>11}"
)
MEMORY = f"{'learner GiB':>13}{'sampler GiB':>13}"


def times(name: str, forecast: Forecast | None) -> str:
    if forecast is None:
        return f"{name:<34}{'does not fit':>59}"
    return (
        f"{name:<34}{forecast.step_seconds:>8.2f}s{forecast.completions_per_second:>10.1f}"
        f"{forecast.samplers_idle:>15.0%}{forecast.learner_idle:>14.0%}"
        f"{forecast.staleness_mean:>11.2f}"
    )


def memory(split: Split) -> str:
    return f"{split.learner_gib:>13.1f}{split.sampler_gib:>13.1f}"


def of_gpus(
    config: RunConfig,
    *,
    gpu: str,
    nodes: int,
    per_node: int = 8,
    like: str = "",
    mean_length: float = 0.0,
) -> str:
    """The plan for a cluster that nobody has here, as text. Raises ValueError for what is not
    known of it, and where nothing fits."""
    if gpu not in GPUS:
        raise ValueError(f"--gpu {gpu} is not known; there are {', '.join(GPUS)}")
    model = describe(config.model.path)
    load, told = workload(config, like=like, mean_length=mean_length)
    gpus = nodes * per_node
    found = best_first(config, model, load, gpu=GPUS[gpu], gpus=gpus, per_node=per_node)
    if found[0].forecast is None:
        needs = max(found[0].learner_gib, found[0].sampler_gib)
        raise ValueError(
            f"nothing fits: a role needs {needs:.0f} GiB of each GPU, and a {gpu} has "
            f"{ROOM * GPUS[gpu].memory / GIB:.0f} for it: raise learner.zero.stage or "
            "sampler.tensor_parallel, lower learner.micro_batch_tokens or sampler.max_running, set "
            "model.gradient_checkpointing=true, or take more GPUs"
        )
    best = found[0].config
    return "\n".join(
        [
            f"{config.model.path}: {model.sizes.parameters / 1e9:.2f} billion parameters",
            f"cluster: {gpus} {gpu}",
            f"lengths: {told}",
            TIMES + MEMORY,
            *(times(split.devices, split.forecast) + memory(split) for split in found),
            f"quickest: learner.ranks={best.learner.ranks} sampler.replicas="
            f"{best.sampler.replicas}",
            "Modelled from data sheets and assumed efficiencies (docs/planner.md), not measured: "
            "take it to choose among splits. On the cluster, plan --measure FILE measures.",
        ]
    )


def of_this(config: RunConfig, *, constants: Path, like: str = "", mean_length: float = 0.0) -> str:
    """The plan for the machine that the constants were measured on: the recipe's own samplers and
    learner under several schedules. Raises ValueError as the others do."""
    model = describe(config.model.path)
    load, told = workload(config, like=like, mean_length=mean_length)
    of = Constants.read(constants)
    lines = [f"constants: {constants}", f"lengths: {told}", TIMES]
    for bound in sorted({0, 1, 2, 4, config.schedule.max_staleness}):
        spare = config.schedule.spare_groups if bound == 0 else 0  # for synchronous steps
        changes = {"max_staleness": bound, "spare_groups": spare}
        schedule = config.schedule.model_copy(update=changes)
        shaped = config.model_copy(update={"schedule": schedule})
        mark = " (the recipe's)" * (bound == config.schedule.max_staleness)
        forecast = simulate(shaped, Measured(of, shaped, model), load)
        lines.append(times(f"max_staleness={bound}{mark}", forecast))
    return "\n".join(lines)
