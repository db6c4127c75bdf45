"""The planner's constants, measured: the recipe's own actors, on this cluster, doing what a run has
them do. The learning rate is next to nothing, so that completions stay what they are.
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import ray

from cluster import inputs as inputs_module
from cluster import loop
from cluster.config import RunConfig
from cluster.metrics import read_metrics
from cluster.placement import Shape
from cluster.planner.costs import Constants, Measured, Model, Table, volume
from cluster.planner.simulate import Workload, simulate
from cluster.progress import Progress
from cluster.run import Run
from cluster.session import ray_session
from cluster.signals import guarded
from cluster.train import check_capacity, device_of
from rollout import ScoredGroup
from rollout.sampler import sample_seed
from rollout.schema import seal

STEPS, WARM = 14, 3
"""Of the run with which a measurement begins; the first do not count."""
ROUNDS = 4
"""How often each probe is made; the first warms up and does not count."""
SHARES = (1.0, 0.25, 0.5, 2.0, 1.0, 4.0, 0.5)
"""Tables, in steps' worth of groups."""
SAMPLING = (
    "latency",
    "per_decode_step",
    "per_decoded_token",
    "per_context_token",
    "per_prompt_token",
    "per_completion",
)
TRAINING = ("per_update", "per_micro_batch", "per_flop")


def measure(config: RunConfig, model: Model) -> Constants:
    """Bring up the run, probe it, end it. About a minute on a small model. Raises what `train`
    raises before its first step."""
    with tempfile.TemporaryDirectory(prefix="cohort-measure-") as folder:
        learner = config.learner.model_copy(
            update={
                "optim": config.learner.optim.model_copy(update={"lr": 1e-12}),
                # Probes are cut short; they are to be trained all the same.
                "algorithm": config.learner.algorithm.model_copy(update={"mask_truncated": False}),
            }
        )
        evaluation = config.eval.model_copy(update={"dataset": ""})
        plain = {"max_staleness": 0, "spare_groups": 0, "uniform_groups": "train", "parts": 1}
        schedule = config.schedule.model_copy(update={**plain, "max_group_size": 0})
        changes = {
            "output_dir": folder,
            "steps": STEPS,
            "learner": learner,
            "eval": evaluation,
            "schedule": schedule,
            "checkpoint": config.checkpoint.model_copy(update={"every": 0}),
            "logging": config.logging.model_copy(update={"keep_rollouts": True}),
        }
        config = config.model_copy(update=changes)
        config.check()
        config.folder.mkdir(parents=True)
        inputs = inputs_module.read(config)
        progress = Progress(config.logging.progress)
        with ray_session(config, progress):
            device = device_of(config)
            check_capacity(config, device, Shape.of(config, learns=True, samples=True))
            run = Unsaved(config, inputs, device, progress)
            try:
                found = asyncio.run(guarded(_measured(run, model)))
            finally:
                run.stop()
        return matched(found, config, model)


class Unsaved(Run):
    """Its last step leaves no checkpoint: nobody goes on from it."""

    async def save(self, step: int) -> None: ...


async def _measured(run: Run, model: Model) -> Constants:
    async with run.progress.shown():
        await run.start()
        await loop.train(run)
        probes = Probes(run, version=STEPS)
        run.progress.phase = "measuring"
        steps = await probes.steps(model)
        run.progress.phase = "measuring samplers and learner side by side"
        overlap = await probes.overlap()
    return Constants(**steps, overlap=overlap, per_step=0.0)


def matched(found: Constants, config: RunConfig, model: Model) -> Constants:
    """The constants, so that the steps with which the measurement began come out as they were:
    a run finds colder caches than probes do."""
    rows = [row for row in read_metrics(config.folder) if "learner/loss" in row][WARM:]
    names = ("rollout", "update", "publish")
    phases = {name: statistics.median(row[f"time/{name}"] for row in rows) for name in names}
    between = [
        after["time"] - before["time"] - sum(after[f"time/{name}"] for name in names)
        for before, after in itertools.pairwise(rows)
    ]
    load = Workload.recorded(config.folder)
    idle = replace(found, per_step=0.0, push=0.0, exchange=0.0, pause=0.0)
    whole = simulate(config, Measured(idle, config, model), load, steps=40).step_seconds
    free = replace(idle, **dict.fromkeys(TRAINING, 0.0))
    sampled = simulate(config, Measured(free, config, model), load, steps=40).step_seconds
    factors = dict.fromkeys(SAMPLING, phases["rollout"] / sampled)
    factors |= dict.fromkeys(TRAINING, phases["update"] / (whole - sampled))
    scaled = {name: getattr(found, name) * factor for name, factor in factors.items()}
    return replace(
        found,
        **scaled,
        exchange=max(0.0, phases["publish"] - found.push - found.pause),
        per_step=max(0.0, statistics.median(between)),
    )


class Probes:
    def __init__(self, run: Run, *, version: int) -> None:
        self._run = run
        self._version = version
        self._tickets = 0
        self._groups: list[ScoredGroup] = []
        """All that was sampled so far: tables are made of them."""

    async def _sample(
        self, count: int, max_tokens: int, prompt_tokens: int = 0
    ) -> tuple[float, list[ScoredGroup]]:
        """Seconds until `count` groups, begun together, are scored; and the groups. Their prompts
        are the recipe's, or random ones of so many tokens."""
        tickets = range(self._tickets, self._tickets + count)
        self._tickets += count
        started = time.perf_counter()
        groups = await asyncio.gather(
            *(self._roll_out(t, max_tokens, prompt_tokens) for t in tickets)
        )
        return time.perf_counter() - started, groups

    async def _roll_out(self, ticket: int, max_tokens: int, prompt_tokens: int) -> ScoredGroup:
        run, config = self._run, self._run.config.sampler
        prompt = run.inputs.prompts.at(ticket)  # pyright: ignore[reportOptionalMemberAccess]
        if prompt_tokens:
            drawn = np.random.default_rng(ticket).choice(prompt.token_ids, prompt_tokens)
            prompt = replace(prompt, token_ids=drawn.astype(np.int32))
        sampling = config.sampling.model_copy(update={"max_tokens": max_tokens})
        seeds = [sample_seed("measure", prompt.id, ticket, i) for i in range(config.group_size)]
        completions = await run.samplers.call("generate", prompt, sampling, seeds)
        if run.algorithm.greedy:
            baseline = await run.samplers.call("generate", prompt, sampling, [])
            completions = (*completions, *baseline)
        scores = await run.scoring.score(prompt, completions)
        return await asyncio.to_thread(run.judged, ticket, prompt, completions, scores)

    async def steps(self, model: Model) -> dict[str, float]:
        """Sample, update and publish in turn, as a run does: what one leaves in the caches is the
        other's price. Batches from one group to as many as the samplers run at once, of three
        lengths, and long prompts for a token; tables of a quarter of a step's groups to four
        steps' worth, short groups and long ones."""
        sampled, trained, published = Fit(SAMPLING), Fit(TRAINING), []
        replicas = self._run.config.sampler.replicas
        for number in range(ROUNDS):
            for index, (count, limit, prompt_tokens) in enumerate(self._batches()):
                spent, groups = await self._sample(count, limit, prompt_tokens)
                if not prompt_tokens:
                    self._groups += groups
                table = self._part(SHARES[index % len(SHARES)], number)
                took = await self._update(table)
                pushed = await self._publish()
                if number:
                    sampled.add(_decoding(groups, replicas), spent)
                    found = volume(self._run.config, model, _table(table))
                    trained.add((1.0, found.micro_batches, found.flops), took)
                    published.append(pushed)
        names = ("push", "exchange", "pause")
        parts = (statistics.median(part) for part in zip(*published, strict=True))
        return {**sampled.solved(), **trained.solved(), **dict(zip(names, parts, strict=True))}

    def _batches(self) -> list[tuple[int, int, int]]:
        """(groups, longest completion, tokens of a prompt; 0: the recipe's own)"""
        config = self._run.config.sampler
        longest, room = config.sampling.max_tokens, self._run.config.max_model_len - 1
        most = max(1, config.replicas * config.max_running // config.group_size)
        counts = sorted({1, max(1, most // 4), max(1, most // 2), most})
        limits = sorted({max(1, longest // 4), max(1, longest // 2), longest}, reverse=True)
        plain = [(count, limit, 0) for limit in limits for count in counts]
        return plain + [(most, 1, max(1, room // share)) for share in (4, 2, 1)]

    def _part(self, share: float, number: int) -> list[ScoredGroup]:
        """Groups seen so far: the shortest, the longest or the latest."""
        size = max(1, round(self._run.config.schedule.groups_per_step * share))
        if number == 1:
            return self._groups[-size:]
        ordered = sorted(self._groups, key=_longest)
        return ordered[:size] if number == 2 else ordered[-size:]

    async def _update(self, groups: list[ScoredGroup]) -> float:
        table = self._run.table(groups, step=1)
        started = time.perf_counter()
        await self._run.learners.all("update", ray.put(seal(table)), None)
        self._version += 1
        return time.perf_counter() - started

    async def _publish(self) -> tuple[float, float, float]:
        """Seconds of the learner's part, of the samplers' beside the pause, of the pause."""
        started = time.perf_counter()
        found = await self._run.publish(self._version)
        push, pause = found["weights/stage_seconds"], found["weights/pause_seconds"]
        return push, time.perf_counter() - started - push - pause, pause

    async def overlap(self) -> float:
        """How much longer an update takes while samplers decode."""
        config = self._run.config
        step = self._groups[-config.schedule.groups_per_step :]
        alone = statistics.median([await self._update(step) for _ in range(ROUNDS)])
        most = max(1, config.sampler.replicas * config.sampler.max_running)

        async def keep_busy() -> None:
            while True:
                count = max(1, most // config.sampler.group_size)
                await self._sample(count, config.sampler.sampling.max_tokens)

        busy = [asyncio.create_task(keep_busy()) for _ in range(2)]
        try:
            await asyncio.sleep(alone / 2)
            beside = statistics.median([await self._update(step) for _ in range(2 * ROUNDS)])
        finally:
            for task in busy:
                task.cancel()
        for ended in await asyncio.gather(*busy, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        return max(1.0, beside / alone)


def _longest(group: ScoredGroup) -> int:
    return max(len(completion.token_ids) for completion in group.group.completions)


def _table(groups: Sequence[ScoredGroup]) -> Table:
    rows = [(g.group, len(c.token_ids)) for g in groups for c in g.group.completions]
    return Table(
        np.array([group.ticket for group, _ in rows]),
        np.array([len(group.prompt.token_ids) for group, _ in rows]),
        np.array([length for _, length in rows]),
    )


def _decoding(groups: list[ScoredGroup], replicas: int) -> tuple[float, ...]:
    """What one of the samplers did for these groups, begun together: (1, steps, tokens, context
    summed over them, prompt tokens, completions)."""
    table = _table(groups)
    lengths_N, busy = table.lengths_N, min(replicas, len(groups))
    attended = (table.prompts_N * lengths_N + np.square(lengths_N) / 2).sum() / busy
    asked = sum(len(group.group.prompt.token_ids) for group in groups) / busy
    tokens, rows = lengths_N.sum() / busy, len(lengths_N) / busy
    return 1.0, float(lengths_N.max()), float(tokens), float(attended), float(asked), rows


class Fit:
    """Seconds as a sum of constants, each times a number known of what was done."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._rows: list[Sequence[float]] = []
        self._seconds: list[float] = []

    def add(self, row: Sequence[float], seconds: float) -> None:
        self._rows.append(row)
        self._seconds.append(seconds)

    def solved(self) -> dict[str, float]:
        """Least squares of the relative error, none of the constants below 0: what would be is left
        out, the worst first (Lawson and Hanson's non-negative problem, by elimination)."""
        weighted = np.array(self._rows) / np.array(self._seconds)[:, None]
        kept, found = list(range(len(self._names))), np.zeros(0)
        while kept:
            found = np.linalg.lstsq(weighted[:, kept], np.ones(len(weighted)), rcond=None)[0]
            # Constants have different units; what counts is their share of the seconds.
            shares = found * weighted[:, kept].mean(axis=0)
            worst = int(shares.argmin())
            if shares[worst] >= 0:
                break
            del kept[worst]
        named = {self._names[index]: float(v) for index, v in zip(kept, found, strict=True)}
        return dict.fromkeys(self._names, 0.0) | named
