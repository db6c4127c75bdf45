"""Whoever dies is replaced: heartbeats, restarts, and a record of both.

A sampler that is lost gets a successor, which serves once it holds the learner's weights and was
found to compute what the learner does; what it was sampling is begun again elsewhere. A learner
rank that is lost takes its group with it: all ranks start anew, load the newest checkpoint and
replay the recorded tables behind it, so nothing is sampled again.

A process that gives no sign of life is killed, and so becomes one that died: nobody else needs to
know of more than deaths.
"""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from cluster import checkpoint
from cluster.checkpoint import Checkpoint
from cluster.config import RunConfig
from cluster.errors import Lost
from cluster.files import add_line
from cluster.head import Head
from cluster.ledger import Commit, Ledger
from cluster.placement import Fleet
from cluster.pool import Member, Pool, answer, is_death
from cluster.progress import Progress
from cluster.publish import Publisher
from rollout.schema import Damaged, Sealed

BEAT_SECONDS = 2.0
JUDGE_TRIES = 5
"""In a row"""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a learner group was made from."""

    checkpoint: Checkpoint | None
    replayed: list[tuple[Commit, dict[str, float]]]
    """With the metrics of the update"""

    @property
    def version(self) -> int:
        return (self.checkpoint.step if self.checkpoint else 0) + len(self.replayed)


class Supervisor:
    """`faults.jsonl` in the run folder has a line for each loss: who, why, what became of it."""

    def __init__(
        self,
        config: RunConfig,
        fleet: Fleet,
        publisher: Publisher,
        ledger: Ledger,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._config = config.cluster
        self._most_samplers = config.sampler.max_replicas
        self._fleet = fleet
        self._publisher = publisher
        self._ledger = ledger
        self._folder = folder
        self._progress = progress
        self._learner = asyncio.Lock()
        """Held by whoever needs all ranks."""
        self._frozen: dict[str, str] = {}
        """Why those were killed that gave no sign of life."""
        self._tasks: asyncio.TaskGroup
        self._coming = 0
        """Samplers on their way"""
        self._starting = False
        """Ranks are: their heartbeats wait for that."""
        self._restored = asyncio.Event()
        self.version = 0
        """Of the learner's weights."""
        self.generation = 0
        """Learner groups before this one."""
        self._spared = 0
        """Of those, the ones that ended although nobody died."""
        self._passing: Callable[[int], Awaitable[None]] | None = None
        """While the run is restored: what is done at each version that the learner comes by."""
        self.sampler_restarts = 0
        self.admissions = 0
        """Of samplers that were not there from the start."""
        self._newcomers: list[Member] = []
        self._judges_coming = Counter[Pool]()
        self._head = Head()

    async def watch(self) -> None:
        """Until cancelled. Raises RuntimeError when too much was lost to go on."""
        async with asyncio.TaskGroup() as self._tasks:
            self._fleet.samplers.lost = self._sampler_lost
            for judges in self._fleet.judges:
                judges.lost = functools.partial(self._judge_lost, judges)
            self._tasks.create_task(self._head.watch(lambda: self.version))
            while True:
                await asyncio.sleep(BEAT_SECONDS)
                fleet = self._fleet
                pools = [fleet.samplers, *fleet.judges]
                pools += [] if self._starting else [fleet.learners]
                members = [(pool, member) for pool in pools for member in pool.live]
                members += [(fleet.samplers, newcomer) for newcomer in self._newcomers]
                well = await asyncio.gather(*(self._beat(*each) for each in members))
                if all(well) and self._has_room():
                    self._tasks.create_task(self._join(len(fleet.samplers.members)))
                    await asyncio.sleep(0)

    async def _beat(self, pool: Pool, member: Member) -> bool:
        """Whether it is well."""
        (index, actor), generation = member, self.generation
        why = await self._illness(actor)
        if not why:
            return True
        if member in self._newcomers:  # whoever brings it hears of its death
            ray.kill(actor)
            return False
        if member not in pool.live:
            return False
        self._frozen.setdefault(f"{pool.name}/{index}", why)
        ray.kill(actor)
        if pool is self._fleet.learners:
            self._tasks.create_task(self._learner_lost(generation, f"learner/{index}", why))
        else:
            pool.drop(member, why)
        return False

    async def _illness(self, actor: ActorHandle) -> str:
        """Why this actor is of no use any more; empty for one that is well."""
        patience = self._config.heartbeat_timeout
        call = asyncio.ensure_future(answer(actor.beat.remote()))
        # The second wait is for an answer that is there, and was not heard: this process was busy.
        await asyncio.wait([call], timeout=patience)
        await asyncio.wait([call], timeout=0.1)
        if not call.done():
            call.cancel()
            return f"no sign of life for {patience:g} s"
        try:
            silence: float = call.result()
        except Exception as error:  # whatever Ray makes of it
            return str(error).strip().splitlines()[0] if is_death(error) else ""
        if silence > 0.9 * self._config.step_timeout:  # before those who wait for it give up
            return f"its engine has done nothing for {silence:.0f} s"
        return ""

    # -- samplers ---------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """For another sampler, and nobody who is to come back needs it."""
        wanted = 0 < len(self._fleet.samplers.members) < self._most_samplers
        busy = self._coming or self._learner.locked()
        return wanted and not busy and self._fleet.has_room_for_a_sampler(self._head.free)

    async def _join(self, index: int) -> None:
        started = time.monotonic()
        self._coming += 1
        try:
            await self._bring(index)
        except RuntimeError as error:  # the run goes on as it was
            self._most_samplers = 0
            self._progress.line(f"sampler/{index} did not join: {error}")
            return
        finally:
            self._coming -= 1
        self._progress.line(f"sampler/{index} joined after {time.monotonic() - started:.0f} s")

    async def _bring(self, index: int) -> None:
        """A new sampler, to work. Raises Lost when it dies on the way."""
        await self._head.is_there()
        newcomer = await self._fleet.start_sampler(index)
        self._newcomers.append(newcomer)
        try:
            await self._restored.wait()
            await self.with_learner(lambda: self._admit(newcomer))
        except BaseException:
            ray.kill(newcomer[1])
            raise
        finally:
            self._newcomers.remove(newcomer)

    def _sampler_lost(self, index: int, why: str) -> None:
        ray.kill(self._fleet.samplers.members[index])  # where only its engine is dead
        self._coming += 1
        self._tasks.create_task(self._replace(index, why))

    async def _replace(self, index: int, why: str) -> None:
        who, started = f"sampler/{index}", time.monotonic()
        why = self._frozen.pop(who, why)
        try:
            await self._bring_back(index, who, why, started)
        except asyncio.CancelledError:
            self._record(who, why, "not replaced: the run ended before", started)
            raise

    async def _bring_back(self, index: int, who: str, why: str, started: float) -> None:
        outcome = "not replaced"
        while self.sampler_restarts < self._config.sampler_restarts:
            self.sampler_restarts += 1
            self._progress.line(f"{who} is lost ({why}); a new one takes its place")
            try:
                await self._bring(index)
            except Lost as lost:
                self._record(who, why, "replaced, lost again", started)
                why, started = str(lost), time.monotonic()
                continue
            except RuntimeError as error:  # the others go on
                outcome = f"not replaced: {error}"
                break
            self._coming -= 1
            self._record(who, why, "replaced", started)
            seconds = time.monotonic() - started
            self._progress.line(f"{who} is back after {seconds:.0f} s at version {self.version}")
            return
        self._coming -= 1
        self._record(who, why, outcome, started)
        self._progress.line(f"{who} is lost ({why}) and {outcome}")
        if not self._fleet.samplers.live and not self._coming:
            raise RuntimeError(
                f"no sampler is left ({self.sampler_restarts} of cluster.sampler_restarts="
                f"{self._config.sampler_restarts} used); the last to go: {who} ({why}), {outcome}"
            )

    async def _admit(self, newcomer: Member) -> None:
        """To those who serve. The learner's hands are free."""
        await self._publisher.ended()
        try:
            await self._fleet.connect([newcomer])
            await self._publisher.admit(newcomer, self.version)
            self._fleet.samplers.put(newcomer)
            self.admissions += 1
        finally:
            await self._fleet.connect_all()

    def _judge_lost(self, pool: Pool, index: int, why: str) -> None:
        ray.kill(pool.members[index])
        self._judges_coming[pool] += 1
        self._tasks.create_task(self._replace_judge(pool, index, why))

    async def _replace_judge(self, pool: Pool, index: int, why: str) -> None:
        """A scorer, a reward model or a service."""
        who, outcome = f"{pool.name}/{index}", "not replaced"
        why, started = self._frozen.pop(who, why), time.monotonic()
        try:
            for _ in range(JUDGE_TRIES):
                self._progress.line(f"{who} is lost ({why}); a new one takes its place")
                try:
                    await self._head.is_there()
                    pool.put(await self._fleet.start_judge(pool, index))
                except Lost as lost:  # perhaps its node is gone, and Ray does not know yet
                    self._record(who, why, "replaced, lost again", started)
                    why, started = str(lost), time.monotonic()
                    continue
                outcome = "replaced"
                return
        except RuntimeError as error:  # the others go on
            outcome = f"not replaced: {error}"
        except asyncio.CancelledError:
            outcome = "not replaced: the run ended before"
            raise
        finally:
            self._judges_coming[pool] -= 1
            self._record(who, why, outcome, started)
        if not pool.live and not self._judges_coming[pool]:
            raise RuntimeError(f"no {pool.name} is left; the last to go: {who} ({why}), {outcome}")

    # -- the learner ------------------------------------------------------------------------------

    async def with_learner(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, which asks all ranks for something; made again where one died under
        it."""
        async with self._learner:
            while True:
                try:
                    return await call()
                except Lost as lost:
                    if not lost.who.startswith("learner/"):
                        raise
                    await self._restart_learner(lost.who, str(lost))

    async def hand(self, method: str, table: Sealed, *args: Any) -> list[Any]:
        """What all ranks make of a table. One that was damaged on its way is sent once more."""
        send = functools.partial(self._fleet.learners.all, method)
        started = time.monotonic()
        try:
            return await send(ray.put(table), *args)
        except Damaged as error:
            results = await send(ray.put(table), *args)
            self._record(f"table for {method}", str(error), "sent again", started)
            return results

    async def _learner_lost(self, generation: int, who: str, why: str) -> None:
        """Found by its heartbeat. Whoever waits for the learner hears of it as well."""
        async with self._learner:
            if generation == self.generation:
                await self._restart_learner(who, why)

    async def restart_learner(self, why: str) -> None:
        """After a failure that leaves ranks in a collective. Within `with_learner`."""
        self._spared += 1  # nobody died
        await self._restart_learner("learner", why)

    async def _restart_learner(self, who: str, why: str) -> Rebuilt:
        while True:
            why, started = self._frozen.pop(who, why), time.monotonic()
            self.generation += 1
            if self.generation - self._spared > self._config.learner_restarts:
                self._record(who, why, "not replaced", started)
                raise RuntimeError(
                    f"{why}; cluster.learner_restarts={self._config.learner_restarts} are used "
                    f"up at step {self.version}: the same command goes on from there"
                )
            self._progress.line(f"{who} is lost ({why}); all ranks start again")
            try:
                await self._head.is_there()
                self._starting = True
                await self._fleet.start_learners()
                self._starting = False
                if not self._publisher.stages:  # they are in the middle of what their learner began
                    for member in self._fleet.samplers.live:
                        self._fleet.samplers.drop(member, f"{who} died")
                await self._publisher.ended()
                await self._fleet.connect_all()
                rebuilt = await self._rebuild()
                if self._restored.is_set() and rebuilt.version != self.version:
                    raise RuntimeError(
                        f"the learner was lost at step {self.version} ({why}), and checkpoints and "
                        f"recorded tables in {self._folder} bring it back to step "
                        f"{rebuilt.version} only: start the run again to go on from there"
                    )
            except Lost as lost:
                if not lost.who.startswith("learner/"):
                    raise
                self._record(who, why, "replaced, lost again", started)
                who, why = lost.who, str(lost)
                continue
            for each in [each for each in self._frozen if each.startswith("learner/")]:
                del self._frozen[each]
            self._record(who, why, "replaced", started)
            self._progress.line(
                f"the learner is back at step {self.version} after "
                f"{time.monotonic() - started:.0f} s, {len(rebuilt.replayed)} steps replayed"
            )
            return rebuilt

    async def restore(self, passing: Callable[[int], Awaitable[None]]) -> Rebuilt:
        """Bring the learner to where the run was; `passing` is awaited at each version but the last
        that it comes by."""
        async with self._learner:
            self._passing = passing
            try:
                return await self._rebuild()
            except Lost as lost:
                if not lost.who.startswith("learner/"):
                    raise
                return await self._restart_learner(lost.who, str(lost))
            finally:
                self._passing = None

    async def _rebuild(self) -> Rebuilt:
        """Load the newest whole checkpoint into a fresh learner group, and replay what was trained
        behind it."""
        learners = self._fleet.learners
        saved, passed_over = await asyncio.to_thread(
            checkpoint.newest, self._folder / "checkpoints"
        )
        for line in passed_over:
            self._progress.line(f"passed over: {line}")
        step = 0
        if saved is not None:
            step = saved.step
            self._progress.phase = "restoring"
            for digest in await learners.all("load", str(saved.folder), step):
                if digest != saved.state["weights"]:
                    raise RuntimeError(
                        f"{saved.folder} was loaded as weights {digest[:12]}, saved were "
                        f"{saved.state['weights'][:12]}"
                    )
        commits = self._ledger.replayable(step)
        replayed: list[tuple[Commit, dict[str, float]]] = []
        for number, commit in enumerate(commits, start=1):
            if self._passing is not None:
                await self._passing(commit.step - 1)
            self._progress.phase = f"replaying {number}/{len(commits)}"
            [report, *_] = await self.hand("update", self._ledger.recorded(commit), None)
            if report.version != commit.step:
                raise RuntimeError(f"step {commit.step} was replayed as {report.version}: a bug")
            replayed.append((commit, report.metrics))
        return Rebuilt(saved, replayed)

    def lost_at_start(self, lost: Lost, began: float) -> None:
        """Before there was a run to go on with: everybody starts again."""
        self._progress.line(f"{lost.who} is lost while starting ({lost}); all start again")
        self._record(lost.who, str(lost), "all started again", began)

    def restored(self, version: int) -> None:
        """The run begins, or goes on, from this version."""
        self.version = version
        self._restored.set()

    def figures(self) -> dict[str, float]:
        return {
            "faults/samplers_alive": float(len(self._fleet.samplers.live)),
            "faults/sampler_restarts": float(self.sampler_restarts),
            "faults/learner_restarts": float(self.generation),
        }

    # -- the record -------------------------------------------------------------------------------

    def _record(self, who: str, why: str, outcome: str, started: float) -> None:
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "step": self.version,
            "who": who,
            "why": why,
            "outcome": outcome,
            "seconds": round(time.monotonic() - started, 3),
        }
        try:
            add_line(self._folder / "faults.jsonl", line)
        except OSError as error:
            self._progress.line(f"not in faults.jsonl ({error.strerror}): {line}")
