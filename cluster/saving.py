"""Checkpoints of a run: when the disk is full and when a signal ends it, too."""

import asyncio
import shutil

from cluster import checkpoint
from cluster.config import RunConfig
from cluster.errors import Lost
from cluster.ledger import Commit, Ledger
from cluster.pool import Pool
from cluster.progress import Progress
from cluster.supervise import Supervisor

FULL = 16 << 20
"""Bytes free on a disk that is why a checkpoint failed."""


class Saver:
    """`seconds` is the time spent per phase so far, `scores` what evaluations gave, by step."""

    def __init__(
        self,
        config: RunConfig,
        fingerprint: str,
        learners: Pool,
        supervisor: Supervisor,
        ledger: Ledger,
        progress: Progress,
    ) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._learners = learners
        self._supervisor = supervisor
        self._ledger = ledger
        self._progress = progress
        self._root = config.folder.resolve() / "checkpoints"
        self._too_little = 0
        """Bytes free when a checkpoint did not fit, and one more."""

    async def save(self, step: int, seconds: dict[str, float], scores: dict[int, float]) -> None:
        """Write a checkpoint of the step that was committed last, and delete what is not to be
        kept. Where that cannot be, training goes on with the last good one; but for the last
        step's, whose failure is a RuntimeError."""
        last = self._ledger.last
        if last is None or last.step != step:
            raise RuntimeError(f"step {step} is to be saved, the last one committed is {last}")
        needed, free = checkpoint.room(self._root)
        if max(needed, self._too_little) > free:
            asked = f"it needs {needed / 2**20:.0f} MiB" if needed > free else "none fitted before"
            there = f"{self._root} has {free / 2**20:.0f} MiB free"
            self._do_without(step, f"{asked} and {there}")
            return
        await self._supervisor.with_learner(lambda: self._write(last, free, dict(seconds)))
        config = self._config.checkpoint
        checkpoint.prune(self._root, keep=config.keep, keep_every=config.keep_every, scores=scores)
        saved = sorted(int(folder.name) for folder in self._root.glob("[0-9]*"))[-config.keep :]
        if saved and not self._config.logging.keep_rollouts:
            self._ledger.forget(saved[0])

    async def _write(self, commit: Commit, free: int, seconds: dict[str, float]) -> None:
        step, failure = commit.step, ""
        folder = self._root / f"tmp-{step:06d}"
        try:
            folder = checkpoint.temporary(self._root, step)
            [weights, *_] = await self._learners.all("save", str(folder), step)
            state = {"seconds": seconds, "inputs": self._fingerprint, "weights": weights}
            await asyncio.to_thread(
                checkpoint.commit, folder, step=step, window=commit.window, state=state
            )
        except Lost:
            raise
        except (RuntimeError, OSError) as error:
            failure = str(error)
            if checkpoint.room(self._root)[1] < FULL:  # writers have other words for it
                self._too_little = free + 1
                failure = f"{self._root} is full ({failure.splitlines()[0]})"
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it has another name once it is whole
        if failure:
            self._do_without(step, failure)
            if self._config.learner.ranks > 1:  # the others wait for the one that failed
                await self._supervisor.restart_learner(failure)

    def _do_without(self, step: int, why: str) -> None:
        if step == self._config.steps:
            raise RuntimeError(
                f"no checkpoint of the last step, {step}: {why}. Make room there, and the same "
                "command ends the run"
            )
        self._progress.line(f"step {step}: no checkpoint, training goes on: {why}")

    async def save_at_stop(self, seconds: dict[str, float], scores: dict[int, float]) -> None:
        """A checkpoint of the last step, within `checkpoint.grace`, unless there is one."""
        last = self._ledger.last
        if last is None or (self._root / f"{last.step:06d}").exists():
            return
        try:
            async with asyncio.timeout(self._config.checkpoint.grace):
                await self.save(last.step, seconds, scores)
        except (TimeoutError, RuntimeError) as error:
            self._progress.line(f"no checkpoint of step {last.step}: {error or 'no time left'}")
