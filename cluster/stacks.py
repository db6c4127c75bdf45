"""What each thread of each process of a run was doing when it failed: `stacks/` of its folder."""

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import ray

from cluster.pool import Pool, answer
from cluster.reaper import RUN_MARK, processes_of

FOLDER = "stacks"
ANSWER_SECONDS = 2.0
AGAIN = "~"
"""In an actor's name, ahead of how many there were in its place."""


def leave_stacks() -> None:
    """On SIGUSR1 every thread's stack goes to a file like `stacks/sampler-0.<pid>.txt` of the run
    folder; the process goes on. Works inside of a hung call, too."""
    if RUN_MARK not in os.environ:
        return
    folder = Path(os.environ[RUN_MARK]) / FOLDER
    name = (ray.get_runtime_context().get_actor_name() or "//").partition(AGAIN)[0]
    *_, role, index = name.split("/")
    path = folder / f"{role}-{index}.{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115  # until the process ends
    except OSError:  # a full disk ends nobody
        return
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def show_stacks() -> None:
    """The same, asked for from another machine; once."""
    pattern = f"*.{os.getpid()}.txt"
    files = list((Path(os.environ[RUN_MARK]) / FOLDER).glob(pattern))
    if files and not files[0].stat().st_size:
        os.kill(os.getpid(), signal.SIGUSR1)


async def save_stacks(run_folder: Path, pools: Sequence[Pool]) -> None:
    """Of those on this machine, hung or not, and of those elsewhere that still answer."""
    with contextlib.suppress(OSError):  # a full disk may be why it failed
        _save_here(run_folder)
    asked = [answer(actor.show_stacks.remote()) for pool in pools for _, actor in pool.live]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            await asyncio.gather(*asked, return_exceptions=True)


def _save_here(run_folder: Path) -> None:
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    here = set(processes_of(run_folder))
    for path in folder.glob("*-*.txt"):  # those who know what the signal means
        pid = int(path.suffixes[0][1:])
        with contextlib.suppress(OSError):
            if pid in here:
                os.kill(pid, signal.SIGUSR1)
    with open(folder / "driver.txt", "w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file)
        for task in asyncio.all_tasks():
            task.print_stack(limit=8, file=file)


def forget_empty_stacks(run_folder: Path) -> None:
    """Of those that nobody asked for."""
    folder = run_folder / FOLDER
    with contextlib.suppress(OSError):  # there are some, the folder never was, or is read-only
        for path in folder.glob("*.txt"):
            if not path.stat().st_size:
                path.unlink()
        folder.rmdir()
