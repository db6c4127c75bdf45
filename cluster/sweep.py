"""No process of a run outlives it."""

import os
import signal
from pathlib import Path

from cluster.actors import RUN_MARK


def processes_of(folder: Path) -> list[int]:
    """Of a run, on this machine, but for the one that asks: whoever carries its mark."""
    mark = f"{RUN_MARK}={folder.resolve()}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            continue
        if marked and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def sweep(folder: Path) -> int:
    """Kill them, the frozen ones included; how many there were."""
    killed = 0
    for pid in processes_of(folder):
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except OSError:
            continue
    return killed
