"""All actors of a run: placed on the cluster, started, connected, ended."""

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.actors import (
    LearnerActor,
    RewardModelActor,
    SamplerActor,
    ScorerActor,
    ServiceActor,
)
from cluster.config import RunConfig
from cluster.device import Device
from cluster.pool import Member, Pool, answer, ask_all
from cluster.progress import Progress
from cluster.reaper import identity, marks_of
from cluster.scoring import ServiceConfig, services_of
from cluster.stacks import AGAIN
from rewards import faults
from rewards.reward_model import RewardModelConfig
from rewards.scorer import LANES
from rollout.transfer import Endpoint


@dataclass(frozen=True, slots=True)
class Shape:
    """How many actors of each role."""

    learners: int
    samplers: int
    scorers: int

    @classmethod
    def of(cls, config: RunConfig, *, learns: bool, samples: bool) -> "Shape":
        return cls(
            learners=config.learner.ranks if learns else 0,
            samplers=config.sampler.replicas if samples else 0,
            scorers=config.rewards.scorers if samples else 0,
        )

    def devices(self, config: RunConfig, device: Device) -> float:
        """CPUs or GPUs that learners and samplers ask for together."""
        workers = self.learners + self.samplers * config.sampler.tensor_parallel
        return workers * device.share

    def describe(self, config: RunConfig, device: Device) -> str:
        """Like `1 learner x 1 CPU + 1 sampler x 1 CPU`."""
        tensor = config.sampler.tensor_parallel
        roles = (
            ("learner", self.learners, device.share, device.resource),
            ("sampler", self.samplers, device.share * tensor, device.resource),
            ("scorer", self.scorers if device.scorer_cpus else 0, device.scorer_cpus, "CPU"),
        )
        return " + ".join(f"{n} {role} x {each:g} {kind}" for role, n, each, kind in roles if n)


MADE = Counter[str]()
"""Actors of each name that this process has made"""


class JudgeKind(NamedTuple):
    """Of those who judge: what makes one, how many there are, what they are started with."""

    make: Callable[[int], ActorHandle]
    count: int
    settings: Any


class Fleet:
    """The actors. Nothing is placed before `start`."""

    def __init__(
        self, config: RunConfig, device: Device, shape: Shape, progress: Progress, folder: Path
    ) -> None:
        self._config = config
        self._device = device
        self._shape = shape
        self._progress = progress
        self._folder = folder
        self._model = absolute(config.model.path)
        seconds = config.cluster.step_timeout
        self.learners = Pool("learner", [], seconds=seconds)
        self.samplers = Pool("sampler", [], seconds=seconds)
        self.scorers = Pool("scorer", [], seconds=seconds)
        self._service_configs = services_of(config.rewards)
        self.services = {
            name: Pool(name, [], seconds=seconds, tries=2) for name in self._service_configs
        }
        for pool in self.judges:
            pool.lost = functools.partial(self._judge_lost, pool)
        self._endpoint: Endpoint
        self._connected: list[Member] = []

    async def start(self) -> None:
        """Until every actor is ready and the learner has shaken hands with the samplers. Raises
        RuntimeError naming those that are not ready in time."""
        shape, tensor = self._shape, self._config.sampler.tensor_parallel
        self._progress.phase = f"starting {shape.describe(self._config, self._device)}"
        self._learner = self._factory(LearnerActor, "learner", self._device.learner_env, 1)
        self._sampler = self._factory(SamplerActor, "sampler", self._device.sampler_env, tensor)
        self._judge_kinds = {self.scorers: self._scorer_kind()}
        for name, service in self._service_configs.items():
            self._judge_kinds[self.services[name]] = self._service_kind(name, service)
        learners = asyncio.ensure_future(self.start_learners())
        if self._device.resource == "CPU":
            # The ranks are made first, scorers last: where a node runs out of memory, Ray kills the
            # youngest. On GPUs the larger engines are, so that they find a node that is free.
            await asyncio.sleep(0)
        self.samplers.adopt([self._sampler(index) for index in range(shape.samplers)])
        for pool, (make, count, _) in reversed(self._judge_kinds.items()):
            pool.adopt([make(index) for index in range(count if shape.scorers else 0)])
        waiting = asyncio.create_task(self._say_who_waits())
        try:
            calls = self.samplers.submit("start", *self._sampler_arguments())
            for pool, (_, _, settings) in self._judge_kinds.items():
                calls += pool.submit("start", settings)
            pools = (self.samplers, *self._judge_kinds)
            actors = [actor for pool in pools for _, actor in pool.live]
            others = asyncio.create_task(self._ready(calls, actors))
            try:
                await asyncio.gather(learners, others)  # first failure first
            finally:
                learners.cancel()
                others.cancel()
                await asyncio.gather(learners, others, return_exceptions=True)
            await self.connect(self.samplers.live)
        finally:
            waiting.cancel()

    async def start_learners(self) -> None:
        """All ranks, in place of those that were."""
        config, count = self._config, self._shape.learners
        if not count:
            return
        patience = 30.0 if self.learners.members else 0.0
        self.learners.kill()
        self._connected = []
        self.learners.adopt([self._learner(rank) for rank in range(count)])
        first = self.learners.members[0]
        [(host, port)] = await self._ready(
            [("learner/0", first.address.remote(config.cluster.port, patience))], [first]
        )
        critic = {"path": absolute(config.learner.critic.path)}
        critic = {"critic": config.learner.critic.model_copy(update=critic)}
        calls = []
        for rank, member in enumerate(self.learners.members):
            call = member.start.remote(
                config.learner.model_copy(update=critic),
                config.model.model_copy(update={"path": self._model}),
                self._rank(rank, host, port),
                {
                    "steps": config.steps,
                    "temperature": config.sampler.sampling.temperature,
                    "max_tokens": config.sampler.sampling.max_tokens,
                },
            )
            calls.append((f"learner/{rank}", call))
        await self._ready(calls, self.learners.members)
        self._endpoint = Endpoint(
            backend=self._device.weight_backend,
            directory=config.cluster.weight_directory,
            address=host,
            port=port + 1,
            seconds=config.cluster.step_timeout,
        )

    async def start_sampler(self, index: int) -> Member:
        """A new one in the place of a lost one, or behind the last. It serves nobody yet."""
        member = self.samplers.place(index, self._sampler(index))
        return await self._start(self.samplers, member, *self._sampler_arguments())

    async def start_judge(self, pool: Pool, index: int) -> Member:
        """The same of a scorer, a reward model or a service."""
        make, _, settings = self._judge_kinds[pool]
        return await self._start(pool, pool.place(index, make(index)), settings)

    async def _start(self, pool: Pool, member: Member, *arguments: Any) -> Member:
        index, actor = member
        try:
            await self._ready([(f"{pool.name}/{index}", actor.start.remote(*arguments))], [actor])
        except BaseException:
            ray.kill(actor)
            raise
        return member

    def has_room_for_a_sampler(self, free: Mapping[str, float]) -> bool:
        share = self._device.share * self._config.sampler.tensor_parallel
        return free.get(self._device.resource, 0) >= share

    async def connect(self, samplers: Sequence[Member]) -> None:
        """The learner's next weights are for these samplers."""
        self._connected = []
        if not self.learners.members or not samplers:
            return
        workers = len(samplers) * self._config.sampler.tensor_parallel
        await self.learners.all(
            "connect",
            replace(self._endpoint, num_workers=workers),
            {f"sampler/{index}": actor for index, actor in samplers},
            self._config.cluster.step_timeout,
        )
        self._connected = list(samplers)

    async def connect_all(self) -> None:
        """The same for all that serve, unless they are those already."""
        if self._connected != self.samplers.live:
            await self.connect(self.samplers.live)

    async def _ready(
        self, calls: list[tuple[str, Any]], actors: Sequence[ActorHandle]
    ) -> list[Any]:
        """Raises Lost for one that died, or was heard of once and then froze."""
        watching = [
            asyncio.create_task(self._kill_frozen(name, actor))
            for (name, _), actor in zip(calls, actors, strict=True)
        ]
        try:
            return await ask_all(calls, what="starting", seconds=self._config.cluster.start_timeout)
        finally:
            for task in watching:
                task.cancel()

    async def _kill_frozen(self, name: str, actor: ActorHandle) -> None:
        """Until cancelled. One that never answered may wait for its place in the cluster."""
        patience = None
        while True:
            try:
                async with asyncio.timeout(patience):
                    await answer(actor.beat.remote())
            except TimeoutError:
                self._progress.line(f"{name} froze while it started")
                ray.kill(actor)
                return
            except RayError:  # whoever waits for its start hears of it
                return
            patience = self._config.cluster.heartbeat_timeout
            await asyncio.sleep(1)

    def _sampler_arguments(self) -> tuple[Any, ...]:
        arguments = {**self._device.engine_args, "weight_backend": self._device.weight_backend}
        return self._model, self._config.sampler, arguments, self._config.max_model_len

    def _rank(self, rank: int, host: str, port: int) -> dict[str, Any]:
        """The fields of `learner.engine.Placement`, as plain values."""
        return {
            "rank": rank,
            "ranks": self._shape.learners,
            "address": host,
            "port": port,
            "collectives": self._device.collectives,
            "dtype": self._device.dtype,
            "timeout_seconds": self._config.cluster.step_timeout,
        }

    def _factory(
        self, actor: Any, role: str, env: dict[str, str], devices: int, gpus: float = 0
    ) -> Callable[[int | str], ActorHandle]:
        """Makes actors of one role: named, with the device's resources and environment."""
        on_gpu = self._device.resource == "GPU" and devices > 0
        share = devices * self._device.share
        variables = {**env, **marks_of(self._folder, identity())}
        if faults.VARIABLE in os.environ:
            variables[faults.VARIABLE] = os.environ[faults.VARIABLE]
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            # In a Ray job, the uploaded folder is on the path of every worker already.
            root = str(Path(__file__).resolve().parent.parent)
            path = filter(None, [root, os.environ.get("PYTHONPATH")])
            variables["PYTHONPATH"] = os.pathsep.join(path)
        options: dict[str, Any] = {
            "num_cpus": 1 if on_gpu else (share or self._device.scorer_cpus),
            "num_gpus": share if on_gpu else gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": variables},
        }
        if role in ("sampler", "service"):
            options["max_concurrency"] = 10_000  # a call is a coroutine that only waits
        if role == "scorer":
            options["max_concurrency"] = LANES

        def make(index: int | str) -> ActorHandle:
            name = f"{self._config.name}/{role}/{index}"
            MADE[name] += 1
            if MADE[name] > 1:  # a dead actor's name may be taken for a while
                name = f"{name}{AGAIN}{MADE[name]}"
            return actor.options(name=name, **options).remote()

        return make

    @property
    def judges(self) -> list[Pool]:
        return [self.scorers, *self.services.values()]

    def _judge_lost(self, pool: Pool, index: int, why: str) -> None:
        """Where nobody supervises: in an evaluation alone."""
        self._progress.line(f"{pool.name}/{index} is lost ({why}); a new one takes its place")
        make, _, settings = self._judge_kinds[pool]
        member = pool.place(index, make(index))
        member[1].start.remote(settings)  # calls wait until then
        pool.put(member)

    def _scorer_kind(self) -> JudgeKind:
        make = self._factory(ScorerActor, "scorer", {}, 0)
        return JudgeKind(make, self._shape.scorers, self._config.rewards)

    def _service_kind(self, name: str, service: ServiceConfig) -> JudgeKind:
        if isinstance(service, RewardModelConfig):
            role, count = "reward_model", service.replicas
            make = self._factory(RewardModelActor, role, {}, 0, gpus=service.gpus)
        else:
            role, count = "service", 1
            make = self._factory(ServiceActor, role, {}, 0)
        return JudgeKind(lambda index: make(f"{name}/{index}"), count, service)

    async def _say_who_waits(self) -> None:
        """Every half minute, what was asked of the cluster and what it has free."""
        while True:
            await asyncio.sleep(30)
            total, free = ray.cluster_resources(), ray.available_resources()
            kind = self._device.resource
            self._progress.line(
                f"still starting: asked for {self._shape.describe(self._config, self._device)}; "
                f"the cluster has {total.get(kind, 0):g} {kind}, {free.get(kind, 0):g} free"
            )

    def kill(self) -> None:
        """End every actor at once. What they hold is on disk or was never promised."""
        for pool in (self.samplers, self.learners, *self.judges):
            pool.kill()


def absolute(path: str) -> str:
    """A folder by its whole path, for processes with another working folder; a hub id as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path
