"""What a run would do, in virtual time: the real loop, window, pool and ledger; samplers, scorers
and a learner of which only the durations are there.

A completion is one token long here, whatever it costs: the table of a step stays small.
"""

import asyncio
import contextlib
import functools
import heapq
import itertools
import math
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster import loop
from cluster.config import RunConfig
from cluster.errors import first_failure
from cluster.ledger import Ledger
from cluster.planner.costs import Costs, Table
from cluster.planner.virtual import in_virtual_time
from cluster.poison import Trials
from cluster.pool import Pool
from cluster.run import Run
from cluster.window import Window
from learner.algorithms import build
from rewards import Score
from rollout import Completion, Prompt
from rollout.config import InFlight
from rollout.schema import Sealed, read_table, to_table


@dataclass(frozen=True)
class Workload:
    """Groups to draw from: what their prompts and completions are long, and their rewards."""

    prompts: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    rewards: tuple[tuple[float, ...], ...]

    @classmethod
    def recorded(cls, run_folder: Path) -> "Workload":
        """What a run has sampled. Raises ValueError where it has recorded nothing."""
        tables = sorted((run_folder / "rollouts").glob("[0-9]*.arrow"))
        if not tables:
            raise ValueError(f"--like {run_folder}: no recorded tables under rollouts/ there")
        groups: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
        for number, path in enumerate(tables):
            table = read_table(path)
            columns = ("group_id", "prompt_ids", "completion_ids", "reward")
            for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
                sizes = (len(row[1]), len(row[2]), row[3] or 0.0)
                groups.setdefault((number, row[0]), []).append(sizes)
        return cls(
            prompts=tuple(rows[0][0] for rows in groups.values()),
            lengths=tuple(tuple(row[1] for row in rows) for rows in groups.values()),
            rewards=tuple(tuple(row[2] for row in rows) for rows in groups.values()),
        )

    @classmethod
    def lognormal(
        cls, *, prompt: int, mean: float, most: int, size: int, sigma: float = 1.0
    ) -> "Workload":
        """Lengths whose logarithm is normal, half of its variance between prompts, cut at `most`;
        rewards that differ within each group."""
        rng = np.random.default_rng(0)
        between, within = rng.normal(size=(256, 1)), rng.normal(size=(256, size))
        logs = np.log(mean) - sigma**2 / 2 + sigma * (between + within) / np.sqrt(2)
        lengths = np.exp(logs).round().clip(1, most).astype(int)
        return cls(
            prompts=(prompt,) * 256,
            lengths=tuple(map(tuple, lengths.tolist())),
            rewards=(tuple(float(i % 2) for i in range(size)),) * 256,
        )

    @functools.cached_property
    def mean_length(self) -> float:
        return statistics.fmean(itertools.chain.from_iterable(self.lengths))

    def prompt(self, ticket: int) -> Prompt:
        """`extra` says which of the groups it is."""
        index = int(np.random.default_rng((7, ticket)).integers(len(self.prompts)))
        ids = np.zeros(1, dtype=np.int32)
        return Prompt(
            id=str(ticket), token_ids=ids, text="", answer="", source="", extra=f"{index}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Of a run in its steady state."""

    step_seconds: float
    completions_per_second: float
    samplers_idle: float
    """Share of the samplers' slots with nothing to decode"""
    learner_idle: float
    staleness_mean: float
    staleness_max: float


class Shared:
    """What samplers, scorers and the learner know of each other."""

    def __init__(self) -> None:
        self.sampling = 0
        """Samplers at work, on the cores that the learner wants"""
        self.learning = False
        self.scored: dict[str, int] = {}
        """Completions of a prompt so far: where a growing group's next round begins"""


@dataclass(slots=True)
class _Group:
    """Siblings that are answered together."""

    prompt: int
    lengths: list[int]
    answer: asyncio.Future[int]
    """The policy version under which the first of them began; `ABORTED` where an update ended
    them."""
    missing: int
    version: int = -1


ABORTED = -1


class VirtualSampler:
    """Continuous batching: a completion joins the batch between two steps and leaves it when it
    ends. All steps up to the next event are one sleep, so that tokens cost nothing."""

    def __init__(self, costs: Costs, config: RunConfig, load: Workload, both: Shared) -> None:
        self._costs, self._load, self._both = costs, load, both
        self._slots, self._most = config.sampler.max_running, config.sampler.sampling.max_tokens
        self._keeps_kv = config.sampler.keep_kv
        self._waiting: deque[tuple[int, _Group]] = deque()
        """(which of its siblings, group)"""
        self._running: list[tuple[int, int, int, _Group]] = []
        """A heap of (step at which it ends, number, tokens, group)"""
        self._position = self._context = 0
        self._stale = 0
        """Tokens whose keys and values are to be computed anew"""
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._idle, self._still, self._turn = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._paused = self._draining = False
        self.version = 0
        self.busy = 0.0
        """Slots times seconds"""
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, prompt: Prompt, _: Any, seeds: Sequence[int]) -> tuple[Any, ...]:
        index, count = int(prompt.extra), max(1, len(seeds))
        known = self._load.lengths[index]
        start = self._both.scored.get(prompt.id, 0)
        lengths = [min(known[(start + i) % len(known)], self._most) for i in range(count)]
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        group = _Group(self._load.prompts[index], lengths, answer, missing=count)
        self._waiting.extend((sibling, group) for sibling in range(count))
        self._changed.set()
        version = await answer
        await asyncio.sleep(self._costs.latency)
        return () if version == ABORTED else tuple(completion(n, version) for n in lengths)

    async def pause(self, in_flight: InFlight) -> None:
        """Returns between two steps."""
        self._paused = True
        if in_flight == "abort":
            for group in {id(g): g for _, _, _, g in self._running}.values():
                group.answer.set_result(ABORTED)
            self._waiting = deque(w for w in self._waiting if not w[1].answer.done())
            self._running, self._context = [], 0
        self._changed.set()
        if in_flight == "wait":
            self._paused, self._draining = False, True  # nobody joins, until all have ended
            while self._running:
                self._idle.clear()
                await self._idle.wait()
            self._paused, self._draining = True, False
            self._changed.set()
        await self._still.wait()

    def resume(self) -> None:
        self._paused = False
        self._still.clear()
        self._stale = 0 if self._keeps_kv else self._context
        self._changed.set()

    async def scored(self) -> None:
        """A few tokens that are only scored: they are in the next step's batch."""
        if self._running or self._waiting:
            self._changed.set()
            self._turn.clear()
            await self._turn.wait()

    def nudge(self) -> None:
        """Another speed from here on."""
        self._changed.set()

    async def work(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            if not self._running:
                self._idle.set()
            if self._paused:
                self._still.set()
            joins = self._waiting and len(self._running) < self._slots and not self._draining
            if self._paused or not (joins or self._running):
                await self._changed.wait()
                continue
            self._both.sampling += 1
            began = now()
            if self._stale or joins:
                await asyncio.sleep(self._admit() * self._slower)
            else:
                running = len(self._running)
                await self._decode()
                self.busy += running * (now() - began)
            self._both.sampling -= 1
            self._turn.set()

    @property
    def _slower(self) -> float:
        return self._costs.overlap if self._both.learning else 1.0

    def _admit(self) -> float:
        """Those that there is room for join the batch; what their prompts cost."""
        tokens, joined, self._stale = self._stale, 0, 0
        while self._waiting and len(self._running) < self._slots:
            sibling, group = self._waiting.popleft()
            if group.version < 0:  # its siblings will find the prompt in the cache
                group.version, tokens = self.version, tokens + group.prompt
            length, joined = group.lengths[sibling], joined + 1
            item = (self._position + length, next(self._numbers), length, group)
            heapq.heappush(self._running, item)
            self._context += group.prompt
        return self._costs.prefill(tokens, joined)

    async def _decode(self) -> None:
        """To the end of the next completion, or until something changes."""
        now, running = asyncio.get_running_loop().time, len(self._running)
        steps, began = self._running[0][0] - self._position, now()
        context = self._context + running * steps / 2
        each = self._costs.decode(running, context) * self._slower
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(steps * each):
                await self._changed.wait()
            # Somebody came, or all stand still, in the middle of a step: it is finished first.
            steps = min(steps, max(1, math.ceil((now() - began) / each)))
            await asyncio.sleep(max(0.0, began + steps * each - now()))
        if len(self._running) != running:
            return  # aborted
        self._position += steps
        self._context += running * steps
        while self._running and self._running[0][0] <= self._position:
            _, _, length, group = heapq.heappop(self._running)
            self._context -= length + group.prompt
            group.missing -= 1
            if not group.missing:
                group.answer.set_result(group.version)


def completion(length: int, version: int) -> Completion:
    return Completion(
        token_ids=np.array([length], dtype=np.int32),
        trainable=np.ones(1, dtype=np.bool_),
        logprobs=np.zeros(1, dtype=np.float32),
        versions=np.array([version], dtype=np.int32),
        text="",
        finish_reason="stop",
    )


class VirtualRun:
    """What `cluster/loop.py` asks a Run for."""

    def __init__(self, config: RunConfig, costs: Costs, load: Workload, folder: Path) -> None:
        self.config, self._costs, self._load = config, costs, load
        self._both = Shared()
        self.engines = [
            VirtualSampler(costs, config, load, self._both) for _ in range(config.sampler.replicas)
        ]
        self.samplers = Pool("sampler", self.engines, seconds=1e12)  # type: ignore[arg-type]
        self.scoring = SimpleNamespace(score=self._score)
        self.lengths = SimpleNamespace(expected=self._expected, saw=lambda *_: None)
        self.algorithm = build(config.learner.algorithm)
        self.inputs = SimpleNamespace(prompts=SimpleNamespace(at=load.prompt), tokenizer=None)
        self.ledger = Ledger(folder, records=False)
        self.window = Window(
            groups_per_step=config.schedule.groups_per_step,
            max_staleness=config.schedule.max_staleness,
            budget=config.steps * config.schedule.groups_per_step,
            spare=config.schedule.spare_groups,
        )
        self._exchanging: asyncio.Task[None] | None = None
        self.sampled_groups = 0
        self.resumed_from = -1  # nobody judges steps or greedy completions here
        self.ends: list[float] = []
        self.rows: list[int] = []
        self.busy: list[tuple[float, float]] = []
        """(slots times seconds of all samplers, seconds of the learner) up to each step's end"""
        self.staleness: list[tuple[float, float]] = []
        self.learned = 0.0
        self.trials = Trials(self.samplers.someone)
        self.judged = lambda *given: Run.judged(self, *given)  # type: ignore[arg-type]
        self.generate = lambda *given, **load: Run.generate(self, *given, **load)  # type: ignore[arg-type]

    async def _score(self, prompt: Prompt, completions: Sequence[Any]) -> list[Score]:
        known, start = self._load.rewards[int(prompt.extra)], self._both.scored.get(prompt.id, 0)
        self._both.scored[prompt.id] = start + len(completions)
        numbers = range(start, start + len(completions))
        return [Score(reward=known[i % len(known)], parts={}) for i in numbers]

    def _expected(self, prompt: Prompt) -> float:
        """As after an epoch; a completion's own arrays do not tell its length here."""
        return statistics.fmean(self._load.lengths[int(prompt.extra)]) / self._load.mean_length

    async def restore(self) -> int:
        return 0

    async def publish(
        self, version: int, groups: int = 0, background: asyncio.TaskGroup | None = None
    ) -> dict[str, float]:
        if self._exchanging is not None:
            await asyncio.wait([self._exchanging])
        await asyncio.sleep(self._costs.push)
        exchange = self._exchange(version, groups)
        if background is None or not (self._costs.staged and self.config.schedule.max_staleness):
            await exchange
        else:
            self._exchanging = background.create_task(exchange)
        return {}

    async def _exchange(self, version: int, groups: int) -> None:
        await asyncio.sleep(self._costs.exchange)
        in_flight = self.config.schedule.in_flight
        await asyncio.gather(*(engine.pause(in_flight) for engine in self.engines))
        await asyncio.sleep(self._costs.pause)
        for engine in self.engines:
            engine.version = version
            engine.resume()
        if groups:
            await self.window.release(groups)
        await asyncio.gather(*(engine.scored() for engine in self.engines))  # the canary

    def table(self, groups: list[Any], *, step: int) -> Any:
        return to_table(groups, step=step, run=self.config.name, temperature=1.0)

    async def take(self) -> list[Any]:
        return await self.window.take(self.config.schedule.groups_per_step)

    async def update(self, sealed: Sealed) -> dict[str, float]:
        table = sealed.open()
        lengths_N = np.array([ids[0] for ids in table["completion_ids"].to_pylist()])
        prompts_N = np.array([self._load.prompts[int(i)] for i in table["extra"].to_pylist()])
        shape = Table(table["group_id"].to_numpy(), prompts_N, lengths_N)
        self.rows.append(table.num_rows)
        await self._learn(self._costs.update(shape))
        return {}

    async def _learn(self, seconds: float) -> None:
        """In parts, since the samplers that slow it down may end meanwhile."""
        parts = 1 if self._costs.overlap == 1.0 else 20
        self._set_learning(True)
        for _ in range(parts):
            slower = self._costs.overlap if self._both.sampling else 1.0
            await asyncio.sleep(seconds / parts * slower)
            self.learned += seconds / parts * slower
        self._set_learning(False)

    def _set_learning(self, learning: bool) -> None:
        self._both.learning = learning
        if self._costs.overlap != 1.0:
            for engine in self.engines:
                engine.nudge()

    async def begin_evaluation(self, step: int, background: asyncio.TaskGroup) -> None: ...

    async def milestones(self, step: int, background: asyncio.TaskGroup) -> None:
        await asyncio.sleep(self._costs.per_step)

    def committed(self, step: int, metrics: dict[str, float]) -> None: ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.ends.append(asyncio.get_running_loop().time())
        self.busy.append((sum(engine.busy for engine in self.engines), self.learned))
        ages = (metrics["schedule/staleness_mean"], metrics["schedule/staleness_max"])
        self.staleness.append(ages)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        yield

    def forecast(self) -> Forecast:
        """Without the first steps, which all samplers begin with nothing to do, and the last ones,
        when no more prompts come."""
        lead = self.config.schedule.max_staleness + 1
        warm, end = lead, len(self.ends) - 1 - lead
        seconds, steps = self.ends[end] - self.ends[warm], end - warm
        slots = len(self.engines) * self.config.sampler.max_running
        sampled, learned = (b - a for a, b in zip(self.busy[warm], self.busy[end], strict=True))
        ages = self.staleness[warm + 1 : end + 1]
        return Forecast(
            step_seconds=seconds / steps,
            completions_per_second=sum(self.rows[warm + 1 : end + 1]) / seconds,
            samplers_idle=1 - sampled / (seconds * slots),
            learner_idle=1 - learned / seconds,
            staleness_mean=statistics.fmean(mean for mean, _ in ages),
            staleness_max=max(most for _, most in ages),
        )


def simulate(config: RunConfig, costs: Costs, load: Workload, *, steps: int = 0) -> Forecast:
    """The recipe's schedule, samplers and learner on these costs and lengths."""
    steps = max(steps, 3 * (config.schedule.max_staleness + 1) + 8)
    config = config.model_copy(update={"steps": steps})

    async def work() -> Forecast:
        with tempfile.TemporaryDirectory(prefix="cohort-plan-") as folder:
            run: Any = VirtualRun(config, costs, load, Path(folder))
            async with asyncio.TaskGroup() as samplers:  # one that fails ends all
                working = [samplers.create_task(engine.work()) for engine in run.engines]
                await loop.train(run)
                for task in working:
                    task.cancel()
            return run.forecast()

    try:
        return in_virtual_time(work)
    except BaseExceptionGroup as group:
        raise first_failure(group) from group
