"""All actors of a run: placed on the cluster, started, connected, ended."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.actors import (
    LearnerActor,
    RewardModelActor,
    SamplerActor,
    ScorerActor,
    ServiceActor,
)
from cluster.config import RunConfig
from cluster.device import Device
from cluster.pool import Pool, ask_all
from cluster.progress import Progress
from cluster.scoring import ServiceConfig, services_of
from rewards.reward_model import RewardModelConfig
from rewards.scorer import LANES
from rollout.transfer import Endpoint

RUN_MARK = "COHORT_RUN"
"""Environment variable of every process of a run: its run folder."""


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
        seconds = config.cluster.step_timeout
        self.learners = Pool("learner", [], seconds=seconds)
        self.samplers = Pool("sampler", [], seconds=seconds)
        self.scorers = Pool("scorer", [], seconds=seconds, restart=self._replace_scorer)
        self._service_configs = services_of(config.rewards)
        self.services = {name: Pool(name, [], seconds=seconds) for name in self._service_configs}

    async def start(self) -> None:
        """Until every actor is ready and the learner has shaken hands with the samplers. Raises
        RuntimeError naming those that are not ready in time."""
        config, device, shape = self._config, self._device, self._shape
        self._progress.phase = f"starting {shape.describe(config, device)}"
        tensor = config.sampler.tensor_parallel
        learner = self._factory(LearnerActor, "learner", device.learner_env, 1)
        sampler = self._factory(SamplerActor, "sampler", device.sampler_env, tensor)
        scorer = self._factory(ScorerActor, "scorer", {}, 0)
        self.learners.adopt([learner(rank) for rank in range(shape.learners)])
        self.samplers.adopt([sampler(index) for index in range(shape.samplers)])
        self.scorers.adopt([scorer(index) for index in range(shape.scorers)])
        if shape.scorers:
            for name, service in self._service_configs.items():
                self.services[name].adopt(self._service_members(name, service))
        waiting = asyncio.create_task(self._say_who_waits())
        try:
            await self._start_members()
        finally:
            waiting.cancel()

    async def _start_members(self) -> None:
        config, seconds = self._config, self._config.cluster.start_timeout
        model = absolute(config.model.path)
        arguments = {**self._device.engine_args, "weight_backend": self._device.weight_backend}
        calls = self.samplers.submit(
            "start", model, config.sampler, arguments, config.max_model_len
        )
        calls += self.scorers.submit("start", config.rewards)
        for name, pool in self.services.items():
            calls += pool.submit("start", self._service_configs[name])
        if not self.learners.members:
            await ask_all(calls, what="starting", seconds=seconds)
            return
        [(host, port)] = await ask_all(
            [("learner/0", self.learners.members[0].address.remote(config.cluster.port))],
            what="being placed",
            seconds=seconds,
        )
        critic = {"path": absolute(config.learner.critic.path)}
        critic = {"critic": config.learner.critic.model_copy(update=critic)}
        for rank, member in enumerate(self.learners.members):
            call = member.start.remote(
                config.learner.model_copy(update=critic),
                config.model.model_copy(update={"path": model}),
                self._rank(rank, host, port),
                {
                    "steps": config.steps,
                    "temperature": config.sampler.sampling.temperature,
                    "max_tokens": config.sampler.sampling.max_tokens,
                },
            )
            calls.append((f"learner/{rank}", call))
        await ask_all(calls, what="starting", seconds=seconds)
        if self.samplers.members:
            endpoint = Endpoint(
                backend=self._device.weight_backend,
                directory=config.cluster.weight_directory,
                address=host,
                port=port + 1,
                num_workers=self._shape.samplers * config.sampler.tensor_parallel,
            )
            await self.learners.all(
                "connect", endpoint, self.samplers.members, config.cluster.step_timeout
            )

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
        variables = {**env, RUN_MARK: str(self._folder)}
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
        prefix = f"{self._folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        return lambda index: actor.options(name=f"{prefix}/{role}/{index}", **options).remote()

    def _replace_scorer(self, index: int) -> ActorHandle:
        self._progress.line(f"scorer/{index} died; a new one takes its place")
        actor = self._factory(ScorerActor, "scorer", {}, 0)(index)
        actor.start.remote(self._config.rewards)
        return actor

    def _service_members(self, name: str, service: ServiceConfig) -> list[ActorHandle]:
        if not isinstance(service, RewardModelConfig):
            return [self._factory(ServiceActor, "service", {}, 0)(name)]
        made = self._factory(RewardModelActor, "reward_model", {}, 0, gpus=service.gpus)
        return [made(f"{name}/{index}") for index in range(service.replicas)]

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
        for pool in (self.samplers, self.learners, self.scorers, *self.services.values()):
            pool.kill()


def absolute(path: str) -> str:
    """A folder by its whole path, for processes with another working folder; a hub id as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path
