"""The plain classes of the inner packages as Ray actors, and the wires between them.

Constructors do nothing heavy: an actor exists at once and fails, if it must, in `start`, where the
error comes back as it was raised. Heavy imports happen there as well.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from cluster.stacks import leave_stacks, show_stacks
from learner.config import LearnerConfig, ModelConfig
from rewards import Attempt, RewardConfig, Task, Verdict, faults
from rewards.packed import Judged, Parcel
from rollout import Completion, Prompt
from rollout.config import InFlight, SamplerConfig, SamplingConfig
from rollout.schema import Sealed
from rollout.transfer import Endpoint

START_SECONDS = 120.0


def own_name() -> str:
    """Of the actor that asks: `<run>/sampler/0`, in the dashboard and before each line that it
    prints. Ray asks once, when the actor is made."""
    return ray.get_runtime_context().get_actor_name() or "an actor"


@ray.remote
class SamplerActor:
    """One vLLM engine. Async: all calls are under way at the same time."""

    _sampler: Any = None
    _acknowledged = (-1, "")
    _load = 0
    """Calls of `generate` under way"""

    async def start(self, model: str, config: SamplerConfig, args: dict, max_len: int) -> None:
        from rollout.sampler import Sampler

        leave_stacks()
        self._sampler = await asyncio.to_thread(Sampler, model, config, args, max_len)
        self._staging: asyncio.Future[None] | None = None

    async def generate(
        self, prompt: Prompt, sampling: SamplingConfig, seeds: list[int]
    ) -> tuple[Completion, ...]:
        self._load += 1
        try:
            return await asyncio.wrap_future(self._sampler.generate(prompt, sampling, seeds))
        finally:
            self._load -= 1

    async def beat(self) -> float:
        """Seconds since the engine's thread was last heard of, while it has something to do."""
        return self._sampler.silence if self._sampler is not None else 0.0

    async def show_stacks(self) -> None:
        show_stacks()

    async def score(self, token_ids: list[int]) -> list[float]:
        return (await asyncio.wrap_future(self._sampler.score(token_ids))).tolist()

    async def pause(self, in_flight: InFlight) -> None:
        await asyncio.wrap_future(self._sampler.pause(in_flight))

    async def resume(self) -> None:
        await asyncio.wrap_future(self._sampler.resume())

    async def stage(self, info: dict[str, Any]) -> None:
        """Begin; `staged` waits for the end."""
        self._staging = asyncio.wrap_future(self._sampler.stage(info))

    async def staged(self) -> None:
        if self._staging is not None:
            await self._staging

    async def switch(
        self, version: int, digest: str, in_flight: InFlight
    ) -> tuple[int, str, float]:
        return await asyncio.wrap_future(self._sampler.switch(version, digest, in_flight))

    async def update(self, phase: Any, info: dict[str, Any]) -> None:
        await asyncio.wrap_future(self._sampler.update(phase, info))

    async def finish_update(self, version: int) -> None:
        self._acknowledged = await asyncio.wrap_future(self._sampler.finish_update(version))

    async def acknowledged(self) -> tuple[int, str]:
        """(version, digest) that the last update ended with."""
        return self._acknowledged

    def __repr__(self) -> str:
        version, _ = self._acknowledged
        return f"{own_name()} (version {version}, {self._load} groups under way)"


class Watched:
    """Answers while its work goes on, in a thread of its own: the concurrency group `watch`."""

    @ray.method(concurrency_group="watch")
    def beat(self) -> float:
        return 0.0

    @ray.method(concurrency_group="watch")
    def show_stacks(self) -> None:
        show_stacks()


@ray.remote(concurrency_groups={"watch": 1})  # pyright: ignore[reportCallIssue, reportArgumentType]
class ScorerActor(Watched):
    """Runs verifiers in child processes. Threaded, so calls may overtake `start`: they wait."""

    def __init__(self) -> None:
        self._started = threading.Event()

    def start(self, config: RewardConfig) -> None:
        from rewards.scorer import Scorer

        leave_stacks()
        self._scorer = Scorer(config)
        self._started.set()

    def judge(self, parcel: Parcel) -> Judged:
        if not self._started.wait(START_SECONDS):
            raise RuntimeError(f"the scorer did not start within {START_SECONDS:.0f} s")
        verdicts = self._scorer.judge(parcel)
        faults.point("reward.before_return")
        return verdicts

    def __repr__(self) -> str:
        return own_name()


@ray.remote
class ServiceActor:
    """One HTTP service: a reward service or a judge. Async: it waits for many answers at once."""

    async def start(self, config: Any) -> None:
        from rewards.services import Http, Judge, JudgeConfig

        leave_stacks()
        self._service = Judge(config) if isinstance(config, JudgeConfig) else Http(config)

    async def beat(self) -> float:
        return 0.0

    async def show_stacks(self) -> None:
        show_stacks()

    async def judge(self, task: Task, attempts: list[Attempt]) -> list[Verdict | None]:
        return await self._service.judge(task, attempts)

    def __repr__(self) -> str:
        return own_name()


@ray.remote(concurrency_groups={"watch": 1})  # pyright: ignore[reportCallIssue, reportArgumentType]
class RewardModelActor(Watched):
    """One replica of a reward model."""

    def start(self, config: Any) -> None:
        from rewards.reward_model import RewardModel

        leave_stacks()
        self._model = RewardModel(config)

    def judge(self, task: Task, attempts: list[Attempt]) -> list[Verdict | None]:
        return self._model.judge(task, attempts)

    def __repr__(self) -> str:
        return own_name()


@ray.remote(concurrency_groups={"watch": 1})  # pyright: ignore[reportCallIssue, reportArgumentType]
class LearnerActor(Watched):
    """One learner rank. Its work runs in one thread; `progress` and `beat` answer meanwhile."""

    def address(self, port: int, seconds: float) -> tuple[str, int]:
        """This node's address, and a port that is free on it (`port` itself when it is not 0),
        within these seconds: a predecessor that was killed may have it for a while."""
        host, until = ray.util.get_node_ip_address(), time.monotonic() + seconds
        # Bound until `start` listens there, seconds later: nobody else is given it meanwhile.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                self._port.bind((host, port))
                return host, self._port.getsockname()[1]
            except OSError as error:
                if time.monotonic() > until:
                    raise ValueError(
                        f"cluster.port={port} cannot be used on {host} ({error.strerror}): choose "
                        "another, or 0 for any free one"
                    ) from error
            time.sleep(0.2)

    def start(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        placement: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        import torch

        from learner.engine import Placement
        from learner.learner import Learner

        leave_stacks()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dtype = getattr(torch, placement.pop("dtype"))
        self._learner = Learner(config, model, Placement(dtype=dtype, **placement), **options)
        if placement["rank"] == 0:
            self._port.close()

    def connect(self, endpoint: Endpoint, samplers: dict[str, ActorHandle], seconds: float) -> None:
        self._learner.connect(endpoint, SamplerClient(samplers, endpoint, seconds))

    def look(self, table: Sealed) -> None:
        self._learner.look(self._learner.open(table))

    def update(self, table: Sealed, max_staleness: int | None) -> Any:
        return self._learner.update(self._learner.open(table), max_staleness)

    def stage_weights(self) -> tuple[str, float]:
        return self._learner.stage_weights()

    def send_weights(self, version: int) -> None:
        self._learner.send_weights(version)

    def score(self, token_ids: list[int]) -> list[float]:
        return self._learner.score(token_ids)

    def save(self, folder: str, version: int) -> str:
        return self._learner.save(folder, version)

    def load(self, folder: str, version: int) -> str:
        return self._learner.load(folder, version)

    @ray.method(concurrency_group="watch")
    def progress(self) -> tuple[int, int]:
        return self._learner.progress()

    def __repr__(self) -> str:
        version = getattr(getattr(self, "_learner", None), "version", None)
        return own_name() if version is None else f"{own_name()} (version {version})"


class SamplerClient:
    """vLLM's weight sync protocol over Ray handles; lives in learner rank 0.

    What the stock client lacks: each sampler gets its own `rank_offset`, and the version is stamped
    when the update ends, by the same call. A sampler that dies meanwhile is not waited for: the
    driver, which hears of it as well, has the word on what becomes of the run.
    """

    def __init__(
        self, samplers: dict[str, ActorHandle], endpoint: Endpoint, seconds: float
    ) -> None:
        self._samplers = samplers
        self._per_sampler = endpoint.num_workers // max(len(samplers), 1)
        self._seconds = seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [
            {**init_info, "rank_offset": 1 + index * self._per_sampler}
            if "rank_offset" in init_info
            else init_info
            for index in range(len(self._samplers))
        ]
        members = self._samplers.values()
        self._get(
            [s.update.remote("init", i) for s, i in zip(members, infos, strict=True)],
            "the handshake with",
        )

    def expect_weights(self, info: dict[str, Any]) -> None:
        calls = [s.update.remote("expect", info) for s in self._samplers.values()]
        self._get(calls, "comparing models with")

    def stage_weights(self, update_info: dict[str, Any]) -> None:
        shared = ray.put(update_info)  # once, however many samplers there are
        self._get([s.stage.remote(shared) for s in self._samplers.values()], "handing weights to")

    def start_weight_update(self) -> None:
        calls = [s.update.remote("start", {}) for s in self._samplers.values()]
        self._get(calls, "announcing weights to")

    def update_weights(self, update_info: Any) -> None:
        calls = [s.update.remote("update", update_info) for s in self._samplers.values()]
        self._get(calls, "exchanging weights in")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = int(weight_version or 0)
        calls = [s.finish_update.remote(version) for s in self._samplers.values()]
        self._get(calls, "stamping the version in")

    def _get(self, refs: list[Any], what: str) -> None:
        _, waiting = ray.wait(refs, num_returns=len(refs), timeout=self._seconds)
        if waiting:
            late = ", ".join(n for n, r in zip(self._samplers, refs, strict=True) if r in waiting)
            raise RuntimeError(f"{what} {late}: no answer within {self._seconds:.0f} s")
        for ref in refs:
            with contextlib.suppress(RayActorError):
                ray.get(ref)
