"""Checkpoints of a run: when the disk is full and when a signal ends it, too."""

import asyncio
import shutil
from typing import TYPE_CHECKING

from cluster import checkpoint
from cluster.errors import Lost
from cluster.window import WindowState

if TYPE_CHECKING:
    from cluster.run import Run


FULL = 16 << 20
"""Bytes free on a disk that is why a checkpoint failed."""


async def save(run: "Run", step: int) -> None:
    """Write a checkpoint of the step that was committed last, and delete what is not to be kept.
    Where that cannot be, training goes on with the last good one; but for the last step's, whose
    failure is a RuntimeError."""
    last = run.ledger.last
    if last is None or last.step != step:
        raise RuntimeError(f"step {step} is to be saved, the last one committed is {last}")
    run.progress.phase = "save"
    needed, free = checkpoint.room(run.checkpoints)
    if max(needed, run.too_little) > free:
        there = f"{run.checkpoints} has {free / 2**20:.0f} MiB free"
        asked = f"it needs {needed / 2**20:.0f} MiB" if needed > free else "it did not fit before"
        _do_without(run, step, f"{asked} and {there}")
        return
    with run.timed("save"):
        await run.supervisor.with_learner(lambda: _write(run, step, last.window, free))
    keep = run.config.checkpoint.keep
    checkpoint.prune(
        run.checkpoints,
        keep=keep,
        keep_every=run.config.checkpoint.keep_every,
        scores={s: m[f"eval/{run.headline}"] for s, m in run.evaluations.items()},
    )
    saved = sorted(int(folder.name) for folder in run.checkpoints.glob("[0-9]*"))[-keep:]
    if saved and not run.config.logging.keep_rollouts:
        run.ledger.forget(saved[0])


async def _write(run: "Run", step: int, window: WindowState, free: int) -> None:
    folder = run.checkpoints / f"tmp-{step:06d}"
    failure = ""
    try:
        folder = checkpoint.temporary(run.checkpoints, step)
        [weights, *_] = await run.learners.all("save", str(folder), step)
        state = {
            "seconds": dict(run.seconds),
            "inputs": run.inputs.fingerprint,
            "weights": weights,
        }
        await asyncio.to_thread(checkpoint.commit, folder, step=step, window=window, state=state)
    except Lost:
        raise
    except (RuntimeError, OSError) as error:
        failure = str(error)
        if checkpoint.room(run.checkpoints)[1] < FULL:
            run.too_little = free + 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it has another name once it is whole
    if failure:
        _do_without(run, step, failure)
        if run.config.learner.ranks > 1:  # the others wait for the one that failed
            await run.supervisor.restart_learner(failure)


def _do_without(run: "Run", step: int, why: str) -> None:
    if step == run.config.steps:
        raise RuntimeError(
            f"no checkpoint of the last step, {step}: {why}. Make room there, and the same command "
            "ends the run"
        )
    run.progress.line(f"step {step}: no checkpoint, training goes on: {why}")


async def save_at_stop(run: "Run") -> None:
    """A checkpoint of the last step, when a signal ends the run between two updates. In the middle
    of one, or while the learner is made anew, the weights are of no step; the recorded tables are
    replayed."""
    run.log_what_is_left()
    last = run.ledger.last
    if last is None or run.updating or (run.checkpoints / f"{last.step:06d}").exists():
        return
    try:
        async with asyncio.timeout(run.config.checkpoint.grace):
            await save(run, last.step)
    except (TimeoutError, RuntimeError) as error:
        run.progress.line(f"no checkpoint of step {last.step}: {error or 'no time left'}")
