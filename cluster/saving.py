"""Checkpoints of a run: when the disk is full and when a signal ends it, too."""

import asyncio
import shutil
from typing import TYPE_CHECKING

from cluster import checkpoint
from cluster.errors import Lost
from cluster.window import WindowState

if TYPE_CHECKING:
    from cluster.run import Run


async def save(run: "Run", step: int, window: WindowState) -> None:
    """Write a checkpoint and delete what is not to be kept. Where that cannot be, training goes on
    with the last good one; but for the last step's, whose failure is a RuntimeError."""
    run.progress.phase = "save"
    needed, free = checkpoint.room(run.checkpoints)
    if needed > free:
        there = f"{run.checkpoints} has {free / 2**20:.0f} MiB free"
        _do_without(run, step, f"it needs {needed / 2**20:.0f} MiB and {there}")
        return
    with run.timed("save"):
        await run.supervisor.with_learner(lambda: _write(run, step, window))
    checkpoint.prune(
        run.checkpoints,
        keep=run.config.checkpoint.keep,
        keep_every=run.config.checkpoint.keep_every,
        scores={s: m[f"eval/{run.headline}"] for s, m in run.evaluations.items()},
    )
    saved = [int(folder.name) for folder in run.checkpoints.glob("[0-9]*")]
    if saved and not run.config.logging.keep_rollouts:
        run.ledger.forget(min(saved))


async def _write(run: "Run", step: int, window: WindowState) -> None:
    folder = checkpoint.temporary(run.checkpoints, step)
    try:
        [weights, *_] = await run.learners.all("save", str(folder))
        state = {
            "seconds": dict(run.seconds),
            "inputs": run.inputs.fingerprint,
            "weights": weights,
        }
        await asyncio.to_thread(checkpoint.commit, folder, step=step, window=window, state=state)
    except Lost:
        raise
    except (RuntimeError, OSError) as error:
        _do_without(run, step, str(error))
        if run.config.learner.ranks > 1:  # the others wait for the one that failed
            await run.supervisor.restart_learner(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it has another name once it is whole


def _do_without(run: "Run", step: int, why: str) -> None:
    if step == run.config.steps:
        raise RuntimeError(
            f"no checkpoint of the last step, {step}: {why}. Make room there, and the same command "
            "ends the run"
        )
    run.progress.line(f"step {step}: no checkpoint, training goes on: {why}")


async def save_at_stop(run: "Run") -> None:
    """A checkpoint of the last step, when a signal ends the run between two updates. In the middle
    of one the weights are of no step; its table and those before are replayed."""
    saved, step = run.last_checkpoint(), run.supervisor.version
    if run.updating or not step or (saved is not None and saved.step == step):
        return
    try:
        async with asyncio.timeout(run.config.checkpoint.grace):
            await save(run, step, run.window.state())
    except (TimeoutError, RuntimeError) as error:
        run.progress.line(f"no checkpoint of step {step}: {error or 'no time left'}")
