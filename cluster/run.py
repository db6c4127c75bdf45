"""Run: everything that one training run holds, from bring-up to tear-down.

The loop (`cluster/loop.py`) calls `take`, `update`, `publish`, `evaluate`, `save` on it and knows nothing
of actors.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from cluster import checkpoint
from cluster.actors import LearnerActor, SamplerActor, ScorerActor
from cluster.checkpoint import Checkpoint
from cluster.config import RunConfig
from cluster.device import Device
from cluster.inputs import Inputs
from cluster.ledger import Ledger
from cluster.metrics import MetricsWriter
from cluster.pool import Pool, ask_all
from cluster.progress import Progress
from cluster.window import Window
from rollout import ScoredGroup
from rollout.transfer import Endpoint

RUN_MARK = "COHORT_RUN"
"""Environment variable of every process of a run: its run folder."""


class Run:
    def __init__(
        self, config: RunConfig, inputs: Inputs, device: Device, progress: Progress
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.device = device
        self.progress = progress
        self.folder = config.folder.resolve()
        self.checkpoints = self.folder / "checkpoints"
        self.ledger = Ledger(self.folder, keep_rollouts=config.logging.keep_rollouts)
        self.metrics = MetricsWriter(self.folder, tensorboard=config.logging.tensorboard)
        self.headline = next(iter(config.rewards.verifiers))
        """The part of the reward that a run is judged by: the first verifier listed."""
        self.window: Window
        self.samplers: Pool
        self.scorers: Pool
        self.learners: Pool
        self.seconds: dict[str, float] = {}
        self._lap: dict[str, float] = {}
        """Seconds per phase since the last logged step; `seconds` counts from the first."""
        self.evaluations: dict[int, dict[str, float]] = {}
        self.examples: list[dict[str, Any]] = []
        self.sampled_groups = 0
        self.trained_groups = 0
        self.resumed_from = 0

    # -- bring-up and tear-down -------------------------------------------------------------------

    async def start(self) -> None:
        """Place all actors and wait until each is ready. Raises RuntimeError naming those that are
        not, with what was asked for and what the cluster has."""
        with self.timed("start"):
            config, device = self.config, self.device
            samplers = config.sampler.replicas if self.inputs.needs_samplers else 0
            scorers = config.rewards.scorers if self.inputs.needs_samplers else 0
            timeout = config.cluster.step_timeout
            make_learner = self._make(LearnerActor, "learner", device.learner_env, 1)
            make_sampler = self._make(
                SamplerActor, "sampler", device.sampler_env, config.sampler.tensor_parallel
            )
            self._make_scorer = self._make(ScorerActor, "scorer", {}, 0)
            self.learners = Pool(
                "learner", [make_learner(r) for r in range(config.learner.ranks)], seconds=timeout
            )
            self.samplers = Pool(
                "sampler", [make_sampler(i) for i in range(samplers)], seconds=timeout
            )
            self.scorers = Pool(
                "scorer",
                [self._make_scorer(i) for i in range(scorers)],
                seconds=timeout,
                restart=self._restart_scorer,
            )
            await self._ready()

    def _make(self, actor: Any, role: str, env: dict[str, str], units: int) -> Any:
        """A factory of actors of one role: named, with the device's resources and environment."""
        on_gpu = self.device.resource == "GPU" and units > 0
        cpus = units if self.device.resource == "CPU" else 1
        variables = {**env, RUN_MARK: str(self.folder)}
        if not os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
            # In a Ray job the uploaded folder is on every worker's path already.
            root = str(Path(__file__).resolve().parent.parent)
            variables["PYTHONPATH"] = os.pathsep.join(
                filter(None, [root, os.environ.get("PYTHONPATH")])
            )
        options: dict[str, Any] = {
            "num_cpus": cpus if units else self.device.scorer_cpus,
            "num_gpus": units if on_gpu else 0,
            "max_restarts": 0,
            "runtime_env": {"env_vars": variables},
        }
        if role == "sampler":
            options["max_concurrency"] = 10_000  # every call is a coroutine that only waits
        prefix = f"{self.folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        return lambda index: actor.options(name=f"{prefix}/{role}/{index}", **options).remote()

    def _restart_scorer(self, index: int) -> Any:
        self.progress.line(f"scorer/{index} died; a new one takes its place")
        restarts = self.scorers.restarts + 1
        make = self._make(ScorerActor, f"scorer-{restarts}", {}, 0)
        actor = make(index)
        actor.start.remote(self.config.rewards)
        return actor

    async def _ready(self) -> None:
        config, device = self.config, self.device
        seconds = config.cluster.start_timeout
        placed = asyncio.create_task(self._say_who_waits())
        try:
            first = self.learners.members[0].address.remote(config.cluster.port)
            [(host, port)] = await ask_all(
                [("learner/0", first)], what="being placed", seconds=seconds
            )
            starts = []
            for rank, learner in enumerate(self.learners.members):
                placement = {
                    "rank": rank,
                    "ranks": config.learner.ranks,
                    "address": host,
                    "port": port,
                    "collectives": device.collectives,
                    "dtype": device.dtype,
                    "timeout_seconds": config.cluster.step_timeout,
                }
                options = {
                    "steps": config.steps,
                    "temperature": config.sampler.sampling.temperature,
                }
                model = config.model.model_copy(update={"path": absolute(config.model.path)})
                call = learner.start.remote(config.learner, model, placement, options)
                starts.append((f"learner/{rank}", call))
            arguments = {**device.engine_args, "weight_backend": device.weight_backend}
            for index, sampler in enumerate(self.samplers.members):
                call = sampler.start.remote(
                    absolute(config.model.path), config.sampler, arguments, config.max_model_len
                )
                starts.append((f"sampler/{index}", call))
            for index, scorer in enumerate(self.scorers.members):
                starts.append((f"scorer/{index}", scorer.start.remote(config.rewards)))
            await ask_all(starts, what="starting", seconds=seconds)
            if self.samplers.members:
                self.endpoint = Endpoint(
                    backend=device.weight_backend,
                    directory=config.cluster.weight_directory,
                    address=host,
                    port=port + 1,
                    num_workers=config.sampler.replicas * config.sampler.tensor_parallel,
                )
                await self.learners.all(
                    "connect",
                    self.endpoint,
                    self.samplers.members,
                    config.cluster.step_timeout,
                    seconds=seconds,
                )
        finally:
            placed.cancel()

    async def _say_who_waits(self) -> None:
        """Every half minute, what was asked of the cluster and what it has free."""
        while True:
            await asyncio.sleep(30)
            total, free = ray.cluster_resources(), ray.available_resources()
            kind = self.device.resource
            self.progress.line(
                f"still starting: asked for {asked(self.config, self.device, self.inputs)}; the "
                f"cluster has {total.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)"
            )

    def stop(self) -> None:
        """End every actor at once. What they hold is on disk or was never promised."""
        for pool in ("samplers", "learners", "scorers"):
            if hasattr(self, pool):
                getattr(self, pool).kill()
        self.metrics.close()

    # -- what the loop asks for -------------------------------------------------------------------

    async def restore(self) -> int:
        """Load the newest complete checkpoint, if any; the step to go on from."""
        saved, passed_over = checkpoint.newest(self.checkpoints)
        for line in passed_over:
            self.progress.line(f"passed over: {line}")
        step = 0
        if saved is not None:
            step = saved.step
            self.progress.phase = "restoring"
            await self.learners.all("load", str(saved.folder), step)
            self.evaluations = {int(k): v for k, v in saved.state["evaluations"].items()}
            self.seconds = {**saved.state["seconds"], "start": self.seconds["start"]}
            self.trained_groups = step * self.config.schedule.groups_per_step
        redone = self.ledger.rewind(step)
        if saved is not None:
            again = f", {redone} steps behind it are trained again" * (redone > 0)
            self.progress.line(
                f"resumed at step {step}: {self.trained_groups} groups trained, "
                f"{len(saved.window.pending)} re-issued{again}"
            )
        self.resumed_from = step
        schedule = self.config.schedule
        self.window = Window(
            groups_per_step=schedule.groups_per_step,
            max_staleness=schedule.max_staleness,
            budget=(self.config.steps - step) * schedule.groups_per_step,
            **({"state": saved.window} if saved is not None else {}),
        )
        self.progress.begin(step, self.config.steps)
        return step

    async def take(self) -> list[ScoredGroup]:
        """The groups of the next step."""
        count = self.config.schedule.groups_per_step
        self.progress.phase = "rollout"
        watching = asyncio.create_task(self._watch_window(count))
        try:
            async with asyncio.timeout(self.config.cluster.step_timeout):
                return await self.window.take(count)
        except TimeoutError:
            raise RuntimeError(
                f"no {count} groups within {self.config.cluster.step_timeout:.0f} s: "
                f"{self.window.num_ready} are ready, {self.window.in_flight} in flight; raise "
                "cluster.step_timeout if completions may take that long"
            ) from None
        finally:
            watching.cancel()

    async def _watch_window(self, count: int) -> None:
        before = self.sampled_groups - self.window.num_ready
        while True:
            self.progress.scored = min(self.window.num_ready, count)
            self.progress.groups = (min(self.sampled_groups - before, count), count)
            await asyncio.sleep(0.2)

    async def update(self, table: pa.Table) -> dict[str, float]:
        """One optimizer step on the table; its metrics."""
        self.progress.phase, self.progress.update = "update", (0, 0)
        watching = asyncio.create_task(self._watch_update())
        try:
            with self.timed("update"):
                reports = await self.learners.all("update", ray.put(table))
        finally:
            watching.cancel()
        self.trained_groups += self.config.schedule.groups_per_step
        return dict(reports[0].metrics)

    async def _watch_update(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.progress.update = await self.learners.members[0].progress.remote()

    async def publish(self, *, version: int) -> dict[str, float]:
        """Give the samplers the learner's weights, as this version, and prove that they have them.

        Each sampler acknowledges version and digest before it serves again; then learner and
        samplers score the same tokens. Raises RuntimeError when either disagrees.
        """
        if not self.samplers.members:
            return {}
        self.progress.phase = "publish"
        with self.timed("publish"):
            await self.samplers.all("pause")
            digest, *_ = await self.learners.all("send_weights")
            for index, answer in enumerate(await self.samplers.all("acknowledged")):
                if tuple(answer) != (version, digest):
                    raise RuntimeError(
                        f"sampler/{index} holds version {answer[0]} with digest "
                        f"{answer[1][:12] or 'none'}; the learner sent version {version} with "
                        f"digest {digest[:12] or 'none'}"
                    )
            await self.samplers.all("resume")
            gap = await self._canary()
        if not gap <= self.device.canary_bound:
            raise RuntimeError(
                f"after publishing version {version}, learner and samplers disagree by {gap:.2g} on "
                f"the logprobs of the same tokens (cluster.canary_bound={self.device.canary_bound}):"
                " the samplers do not hold the learner's weights"
            )
        return {"policy/canary_gap": gap}

    async def _canary(self) -> float:
        """The largest logprob difference between the learner and any sampler."""
        tokens = self.inputs.canary
        learned, sampled = await asyncio.gather(
            self.learners.all("score", tokens), self.samplers.all("score", tokens)
        )
        return max(
            abs(ours - theirs)
            for answer in sampled
            for ours, theirs in zip(learned[0], answer, strict=True)
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        metrics |= {f"time/{phase}": seconds for phase, seconds in self._lap.items()}
        self._lap = {}
        self.metrics.write(step, metrics)
        self.progress.reward = metrics.get("reward/mean")
        self.progress.end_step(step)
        if metrics.get("rollout/uniform_groups") == 1.0 and self.inputs.prompts is not None:
            self.progress.line(
                f"step {step}: every group had uniform rewards, so nothing was learned: the task is "
                "too hard, too easy, or the verifier never matches"
            )
        if metrics.get("reward/verifier_errors"):
            count = metrics["reward/verifier_errors"]
            self.progress.line(f"step {step}: the verifier failed on {count:.0f} completions")
        if not self.progress.is_live:
            self.progress.line(
                f"{self.progress.render()} · loss {metrics['learner/loss']:.4f}"
                f" · length {metrics['rollout/length']:.1f}"
            )

    async def milestones(self, step: int) -> None:
        """Evaluation and checkpoint, where this step is due for one."""
        last = step == self.config.steps
        every = self.config.checkpoint.every
        state = self.window.state()  # before anything below lets new prompts in
        if step % self.config.eval.every == 0 or last:
            await self.evaluate(step)
        if last or (every and step % every == 0):
            await self.save(step, state)

    async def evaluate(self, step: int) -> None:
        if not self.inputs.held_out:
            return
        from cluster.evaluate import evaluate

        self.progress.phase = "evaluate"
        with self.timed("evaluate"):
            metrics = await evaluate(self)
        self.evaluations[step] = metrics
        self.metrics.write(step, metrics)
        parts = " · ".join(
            f"{name} {metrics[f'eval/{name}']:.1%}" for name in self.config.rewards.verifiers
        )
        self.progress.line(
            f"step {step}/{self.config.steps} · held out: {parts}"
            f" · length {metrics['eval/length']:.1f}"
        )

    async def save(self, step: int, window: Any) -> None:
        """Write a checkpoint. A full disk is a warning; training goes on with the last good one."""
        self.progress.phase = "save"
        with self.timed("save"):
            try:
                folder = checkpoint.temporary(self.checkpoints, step)
                await self.learners.all("save", str(folder))
                state = {
                    "evaluations": self.evaluations,
                    "seconds": self.seconds,
                    "inputs": self.inputs.fingerprint,
                    "best": self.best,
                }
                await asyncio.to_thread(
                    checkpoint.commit, folder, step=step, window=window, state=state
                )
            except (OSError, RuntimeError) as error:
                if "No space left" not in str(error) and "Disk quota" not in str(error):
                    raise
                self.progress.line(f"step {step}: no checkpoint, the disk is full: {error}")
                return
            checkpoint.prune(self.checkpoints, keep=self.config.checkpoint.keep, best=self.best)

    @property
    def best(self) -> int | None:
        """The step whose evaluation was best on the headline part."""
        scores = {step: m[f"eval/{self.headline}"] for step, m in self.evaluations.items() if step}
        return max(scores, key=scores.__getitem__) if scores else None

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            self._lap[phase] = self._lap.get(phase, 0.0) + spent

    def last_checkpoint(self) -> Checkpoint | None:
        return checkpoint.newest(self.checkpoints)[0]


def absolute(path: str) -> str:
    """A folder by its whole path, for processes with another working folder; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def asked(config: RunConfig, device: Device, inputs: Inputs) -> str:
    """ "1 learner x 1 CPU + 1 sampler x 1 CPU"."""
    parts = [f"{config.learner.ranks} learner x 1 {device.resource}"]
    if inputs.needs_samplers:
        tensor = config.sampler.tensor_parallel
        parts.append(f"{config.sampler.replicas} sampler x {tensor} {device.resource}")
        if device.scorer_cpus:
            parts.append(f"{config.rewards.scorers} scorer x {device.scorer_cpus:g} CPU")
    return " + ".join(parts)


def units(config: RunConfig, *, samples: bool) -> int:
    """Devices that learners and samplers need together."""
    samplers = config.sampler.replicas * config.sampler.tensor_parallel
    return config.learner.ranks + (samplers if samples else 0)


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
