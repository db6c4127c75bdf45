"""Run: everything that one training run holds, from bring-up to tear-down.

The loop (`cluster/loop.py`) calls `take`, `update`, `publish`, `milestones` on it and knows nothing
of actors; `cluster/supervise.py` replaces those that die.
"""

import asyncio
import contextlib
import functools
import gc
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from cluster import checkpoint, logprobs
from cluster.checkpoint import Checkpoint
from cluster.config import RunConfig
from cluster.device import Device
from cluster.errors import Lost
from cluster.evaluate import Evaluations, MixedVersions, evaluate
from cluster.health import Health
from cluster.inputs import Inputs
from cluster.ledger import Ledger, table_path
from cluster.lengths import Lengths
from cluster.metrics import MetricsWriter, describe, read_metrics, staleness
from cluster.placement import Fleet, Shape
from cluster.poison import Poisoned, Trials, put_aside
from cluster.pool import answer
from cluster.progress import Progress
from cluster.publish import Publisher
from cluster.saving import Saver
from cluster.scoring import Scoring, trainable
from cluster.stacks import forget_empty_stacks
from cluster.supervise import Rebuilt, Supervisor
from cluster.timeline import Timeline
from cluster.window import Window, WindowState
from learner.algorithms import build
from rewards import Score
from rollout import Completion, Group, Prompt, ScoredGroup
from rollout.config import SamplingConfig
from rollout.schema import Sealed, seal, to_groups, to_table
from rollout.steps import step_tokens
from rollout.types import Steps

LEARNS = ("restore", "update", "publish", "save")
"""Phases in which the learner works; in the others it waits."""


def part_sizes(count: int, parts: int) -> list[int]:
    """As equal as can be, the larger ones first."""
    return [count // parts + (number < count % parts) for number in range(parts)]


def calm_collector() -> None:
    """Python's garbage collector looks through all that lives each time that a quarter has been
    added. With thousands of groups in flight that was more than half of the driver's work, and it
    found nothing: what is here now stays, and new objects are looked at in large batches."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


class Run:
    """`learns=False` brings up samplers and scorers only, for an evaluation."""

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        device: Device,
        progress: Progress,
        *,
        learns: bool = True,
    ) -> None:
        self.config = config
        self.inputs = inputs
        self.device = device
        self.progress = progress
        self.folder = config.folder.resolve()
        shape = Shape.of(config, learns=learns, samples=inputs.needs_samplers)
        self.fleet = Fleet(config, device, shape, progress, self.folder)
        self.samplers = self.fleet.samplers
        self.scoring = Scoring(
            config.rewards,
            config.sampler.sampling.max_tokens,
            self.fleet.scorers,
            self.fleet.services,
        )
        self.learners = self.fleet.learners
        self.publisher = Publisher(config, device, self.learners, self.samplers, inputs.canary)
        self.checkpoints = self.folder / "checkpoints"
        self.ledger = Ledger(self.folder)
        self.supervisor = Supervisor(
            config, self.fleet, self.publisher, self.ledger, self.folder, progress
        )
        self.trials = Trials(self.samplers.someone)
        self.saver = Saver(
            config, inputs.fingerprint, self.learners, self.supervisor, self.ledger, progress
        )
        self.metrics = MetricsWriter(self.folder, config.name, config.logging)
        judging = [("judging", pool) for pool in self.fleet.services.values()]
        self.timeline = Timeline(
            self.folder,
            [("sampling", self.samplers), ("scoring", self.fleet.scorers), *judging],
        )
        self.health = Health(config)
        self.algorithm = build(config.learner.algorithm)
        self.headline = next(iter(config.rewards.verifiers))
        """The part of the reward that a run is judged by: the first verifier listed."""
        self.window: Window
        self.lengths = Lengths()
        self.seconds: dict[str, float] = {}
        self._lap: dict[str, float] = {}
        """Seconds per phase since the last logged step; `seconds` counts from the first."""
        self._evaluation: asyncio.Task[None] | None = None
        self.evaluations = Evaluations(self.folder)
        self.sampled_groups = 0
        self.trained_groups = 0
        self.resumed_from = 0
        self._updating = False
        """The learner's weights are of no step."""
        self._unlogged: tuple[int, dict[str, float]] | None = None
        self._noted: list[np.ndarray] | None = None
        """What the learner said of the table that it trains; written when that is committed."""
        self._logged_at = time.monotonic()

    async def start(self) -> None:
        with self.timed("start"):
            for left in reversed(range(self.config.cluster.start_restarts + 1)):
                began = time.monotonic()
                try:
                    await self.fleet.start()
                    break
                except Lost as lost:
                    if not left:
                        raise
                    self.supervisor.lost_at_start(lost, began)
                    self.fleet.kill()
        calm_collector()

    def stop(self) -> None:
        self.fleet.kill()
        self.timeline.flush()
        self.metrics.close()
        forget_empty_stacks(self.folder)

    def judged(
        self, ticket: int, prompt: Prompt, completions: Sequence[Completion], scores: list[Score]
    ) -> ScoredGroup:
        """The group of a ticket; a greedy completion behind the sampled ones is the baseline."""
        size = len(completions) - self.algorithm.greedy
        completions, scores, greedy = completions[:size], scores[:size], scores[size:]
        scores = trainable(completions, scores)
        group = Group(
            ticket=ticket,
            prompt=prompt,
            completions=tuple(completions),
            rounds=tuple(n // self.config.sampler.group_size for n in range(size)),
        )
        steps: tuple[Steps, ...] = ()
        if any(score.steps for score in scores):
            steps = tuple(
                step_tokens(self.inputs.tokenizer, completion, score)
                for completion, score in zip(completions, scores, strict=False)
            )
        return ScoredGroup(
            group=group,
            scores=tuple(scores),
            steps=steps,
            greedy_reward=greedy[0].reward if greedy else None,
        )

    # -- what the loop asks for -------------------------------------------------------------------

    async def restore(self) -> int:
        """Bring the learner to where the run was, if it was anywhere; the step to go on from."""
        with self.timed("restore"):
            rebuilt = await self.supervisor.restore(self._evaluate_on_the_way)
        saved, step = rebuilt.checkpoint, rebuilt.version
        window = WindowState((), 0)
        if saved is not None:
            self.seconds = {**saved.state["seconds"], "start": self.seconds["start"]}
            window = saved.window
        if rebuilt.replayed:
            window = rebuilt.replayed[-1][0].window
        redone = self.ledger.rewind(step, window)
        checkpoint.put_aside(self.checkpoints, step)
        self.evaluations.forget_after(step)
        self._count(rebuilt)
        if step or redone:
            replayed = f", the last {len(rebuilt.replayed)} steps replayed"
            replayed *= bool(rebuilt.replayed)
            again = f", {redone} steps behind it are trained again" * bool(redone)
            self.progress.line(
                f"resumed at step {step}: {self.trained_groups} groups trained{replayed}, "
                f"{len(window.pending)} re-issued{again}"
            )
        self.resumed_from = step
        self.supervisor.restored(step)
        schedule = self.config.schedule
        self.window = Window(
            groups_per_step=schedule.groups_per_step,
            max_staleness=schedule.max_staleness,
            budget=(self.config.steps - step) * schedule.groups_per_step,
            spare=schedule.spare_groups,
            version=step,
            state=window,
        )
        self.progress.begin(step, self.config.steps)
        self._logged_at = time.monotonic()
        self.timeline.flush()
        return step

    async def _evaluate_on_the_way(self, step: int) -> None:
        """The evaluation of a version that the run came by before, where it was under way when the
        run ended."""
        if self._is_due(step):
            await self._publish(step)
            await self._evaluate(step)

    def _count(self, rebuilt: Rebuilt) -> None:
        """What was trained so far. Steps that were committed and not logged are logged now."""
        per_step = self.config.schedule.groups_per_step
        self.trained_groups = rebuilt.version * per_step
        logged = {row["step"] for row in read_metrics(self.folder) if "learner/lr" in row}
        for commit, learned in rebuilt.replayed:
            if commit.step not in logged:
                groups = to_groups(self.ledger.recorded(commit).open())
                aged = staleness(groups, commit.step - 1)
                self.metrics.write(commit.step, describe(groups) | aged | learned)

    async def generate(
        self, prompt: Prompt, sampling: SamplingConfig, seeds: list[int], load: float = 1.0
    ) -> tuple[Completion, ...]:
        """From whichever sampler is the least busy, and lives to the end of it. Raises Poisoned for
        a prompt that kills them."""
        return await self.trials.ask(
            prompt, lambda: self.samplers.call("generate", prompt, sampling, seeds, load=load)
        )

    def put_aside(self, ticket: int, prompt: Prompt, why: str) -> None:
        self.progress.line(f"dropped: {why}")
        put_aside(self.folder, ticket, prompt, why)

    async def take(self) -> list[ScoredGroup]:
        """The groups of the next step."""
        count = self.config.schedule.groups_per_step
        self.progress.phase = "rollout"
        watching = asyncio.create_task(self._watch_window(count))
        try:
            async with asyncio.timeout(self.config.cluster.step_timeout):
                return await self._take(count)
        except TimeoutError:
            raise RuntimeError(
                f"no {count} groups within {self.config.cluster.step_timeout:.0f} s: "
                f"{self.window.num_ready} are ready, {self.window.in_flight} in flight; raise "
                "cluster.step_timeout if completions may take that long"
            ) from None
        finally:
            watching.cancel()

    async def _take(self, count: int) -> list[ScoredGroup]:
        """In parts, of which the learner looks at one while the next is waited for. A look that
        fails ends the waiting."""
        groups: list[ScoredGroup] = []
        generation = self.supervisor.generation
        async with asyncio.TaskGroup() as looks:
            for size in part_sizes(count, self.config.schedule.parts):
                groups += await self.window.take(size)
                if size < count:
                    looks.create_task(self._look(groups[-size:], generation))
        return groups

    async def _look(self, groups: list[ScoredGroup], generation: int) -> None:
        part = seal(self.table(groups, step=self.supervisor.version + 1))

        async def look() -> None:
            if self.supervisor.generation == generation:  # else what it saw of this step is lost
                started = time.monotonic()
                await self.supervisor.hand("look", part)
                self.timeline.worked("look", started, time.monotonic())

        await self.supervisor.with_learner(look)

    def table(self, groups: list[ScoredGroup], *, step: int) -> pa.Table:
        temperature = self.config.sampler.sampling.temperature
        return to_table(groups, step=step, run=self.config.name, temperature=temperature)

    async def _watch_window(self, count: int) -> None:
        before = self.sampled_groups - self.window.num_ready
        while True:
            self.progress.scored = min(self.window.num_ready, count)
            self.progress.groups = (min(self.sampled_groups - before, count), count)
            await asyncio.sleep(0.2)

    async def update(self, table: Sealed) -> dict[str, float]:
        """One optimizer step on the table; its metrics."""
        self.progress.phase, self.progress.update = "update", (0, 0)
        watching = asyncio.create_task(self._watch_update())
        # Recordings and demonstrations were sampled by other policies than the one in training.
        bound = self.config.schedule.max_staleness if self.inputs.prompts is not None else None
        try:
            self._updating = True
            with self.timed("update"):
                reports = await self.supervisor.with_learner(
                    lambda: self.supervisor.hand("update", table, bound)
                )
            self._updating = False
        finally:
            watching.cancel()
        self.supervisor.version = reports[0].version
        self._noted = reports[0].logprobs
        self.trained_groups += self.config.schedule.groups_per_step
        return dict(reports[0].metrics)

    async def _watch_update(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            with contextlib.suppress(RayError):  # who waits for the update hears of it as well
                self.progress.update = await answer(self.learners.members[0].progress.remote())

    async def publish(
        self, version: int, groups: int = 0, background: asyncio.TaskGroup | None = None
    ) -> dict[str, float]:
        """Give the samplers the learner's weights, as this version, and refund the slots of the
        groups they were trained on, unless nobody samples: a supervised run publishes when it
        evaluates."""
        release = functools.partial(self.window.release, groups) if groups else None
        if self.inputs.prompts is None:
            if release is not None:
                await release()
            return {}
        await self.evaluated()
        self.progress.phase = "publish"
        with self.timed("publish"):
            return await self.supervisor.with_learner(
                lambda: self._publish(version, release, background)
            )

    async def _publish(self, version: int, *given: Any) -> dict[str, float]:
        """To all samplers that there are now."""
        await self.publisher.ended()
        await self.fleet.connect_all()
        return await self.publisher.publish(version, *given)

    def committed(self, step: int, metrics: dict[str, float]) -> None:
        """What is known of the step before its weights are published."""
        self._unlogged = step, metrics
        if self._noted is not None:
            try:
                logprobs.write(self.folder, step, self._noted)
            except OSError as error:  # only people read them
                self.progress.line(f"step {step}: logprobs not recorded: {error}")
            self._noted = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._unlogged = None
        metrics |= {f"time/{phase}": seconds for phase, seconds in self._lap.items()}
        self._lap = {}
        metrics |= self.supervisor.figures() | self.timeline.flush() | self._rates(metrics)
        self.metrics.write(step, metrics)
        for warning in self.health.look(metrics):
            self.progress.line(f"step {step}: {warning}")
        self.progress.reward = metrics.get("reward/mean")
        self.progress.end_step(step)
        if self.algorithm.compares_siblings and metrics.get("rollout/uniform_groups") == 1.0:
            self.progress.line(
                f"step {step}: every group had uniform rewards, so nothing was learned: the task "
                "is too hard, too easy, or the verifier never matches"
            )
        if metrics.get("learner/skipped_steps"):
            self.progress.line(
                f"step {step}: {metrics['learner/skipped_steps']:.0f} optimizer steps were skipped "
                "because their loss or gradient was not finite; what they were to learn from is "
                f"in {table_path(self.folder / 'rollouts', step)}"
            )
        if metrics.get("reward/verifier_errors"):
            count = metrics["reward/verifier_errors"]
            self.progress.line(f"step {step}: the verifier failed on {count:.0f} completions")
        loss = f"{metrics['learner/loss']:.4f}" if "learner/loss" in metrics else "skipped"
        self.progress.step_line(f"loss {loss} · length {metrics['rollout/length']:.1f}")

    def _rates(self, metrics: dict[str, float]) -> dict[str, float]:
        now = time.monotonic()
        seconds, self._logged_at = now - self._logged_at, now
        tokens = metrics["rollout/length"] * metrics["rollout/group_size"]
        rates = {
            "time/step": seconds,
            "rollout/tokens_per_s": tokens * self.config.schedule.groups_per_step / seconds,
        }
        with contextlib.suppress(OSError):  # a file system that is away for a moment
            rates["disk/free_gb"] = shutil.disk_usage(self.folder).free / 1e9
        return rates

    async def begin_evaluation(self, step: int, background: asyncio.TaskGroup) -> None:
        """Start the evaluation of this step's policy, where one is due. Training goes on: the
        samplers answer both, and only the next publish waits for it. A supervised run waits here:
        it publishes for its evaluations only, and the weights must not move before; so does
        the last step, whose checkpoint is to know of it."""
        if self._is_due(step):
            if self.inputs.prompts is None:  # nobody samples between evaluations
                await self.supervisor.with_learner(lambda: self._publish(step))
            self._evaluation = background.create_task(self._evaluate(step))
            if self.inputs.prompts is None or step == self.config.steps:
                await self.evaluated()

    def _is_due(self, step: int) -> bool:
        """For an evaluation."""
        due = step % self.config.eval.every == 0 or step == self.config.steps
        return due and bool(self.inputs.held_out) and step not in self.evaluations.metrics

    async def evaluated(self) -> None:
        """The evaluation under way, if any, is done."""
        if self._evaluation is not None and not self._evaluation.done():
            self.progress.phase = "evaluate"
            with self.timed("evaluate"):  # what training waits for, not all that it takes
                await asyncio.wait([self._evaluation])

    async def milestones(self, step: int, background: asyncio.TaskGroup) -> None:
        """Evaluation and checkpoint, where this step is due for one."""
        last = step == self.config.steps
        every = self.config.checkpoint.every
        await self.begin_evaluation(step, background)
        if last:  # the last checkpoint is of weights that were found right
            await self.publisher.ended()
            saved = self.last_checkpoint()
            last = saved is None or saved.step < step
        if last or (every and step % every == 0 and step < self.config.steps):
            await self.save(step)

    async def save(self, step: int) -> None:
        self.progress.phase = "save"
        with self.timed("save"):
            await self.saver.save(step, self.seconds, self._scores())

    async def save_at_stop(self) -> None:
        """The row and the checkpoint of the last step, when a signal ends the run. In the middle of
        an update the weights are of no step: the recorded tables are replayed."""
        if self._unlogged is not None:
            self.metrics.write(*self._unlogged)
        if not self._updating:
            await self.saver.save_at_stop(self.seconds, self._scores())

    async def _evaluate(self, step: int) -> None:
        await self.publisher.ended()
        admissions = self.supervisor.admissions
        try:
            metrics, example = await evaluate(
                self.config,
                self.inputs.held_out,
                generate=self.generate,
                scoring=self.scoring,
                version=step,
            )
        except MixedVersions:
            if self.supervisor.admissions == admissions:
                raise
            self.progress.line(f"step {step}: no evaluation, samplers came to it meanwhile")
            return
        except Poisoned as error:
            self.progress.line(f"step {step}: no evaluation: {error}")
            return
        self.evaluations.add(step, metrics, example)
        self.metrics.write(step, metrics)
        parts = " · ".join(
            f"{name} {metrics[f'eval/{name}']:.1%}" for name in self.config.rewards.verifiers
        )
        self.progress.line(
            f"step {step}/{self.config.steps} · held out: {parts}"
            f" · length {metrics['eval/length']:.1f}"
        )

    @property
    def best(self) -> int | None:
        """The step whose evaluation was best on the headline part."""
        scores = {step: score for step, score in self._scores().items() if step}
        return max(scores, key=scores.__getitem__) if scores else None

    def _scores(self) -> dict[int, float]:
        return {s: m[f"eval/{self.headline}"] for s, m in self.evaluations.metrics.items()}

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            spent = ended - started
            if phase in LEARNS:
                self.timeline.worked(phase, started, ended)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            self._lap[phase] = self._lap.get(phase, 0.0) + spent

    def last_checkpoint(self) -> Checkpoint | None:
        return checkpoint.newest(self.checkpoints)[0]
