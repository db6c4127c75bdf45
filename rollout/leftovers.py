"""What processes that were killed leave in temporary places: whoever makes something there holds a
lock on it, which ends with its maker, so that others see what is nobody's."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

WEIGHTS = "cohort-weights-"
"""Files in shared memory, until every sampler has them open"""
TEMPORARY = "cohort-sampler-"
"""Folders of engines that start, with a file `lock`"""


def lock(fd: int) -> None:
    """Until it is closed. Raises OSError when somebody has it. To be called while a file of weights
    is empty."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_weights(directory: Path) -> None:
    """Those of dead makers. An empty file may be one whose maker has not locked it yet."""
    for path in directory.glob(f"{WEIGHTS}*"):
        with contextlib.suppress(OSError), open(path, "rb") as file:  # somebody's, or gone
            if os.fstat(file.fileno()).st_size:
                lock(file.fileno())
                os.unlink(path)


def remove_folders(directory: Path) -> None:
    """Those of dead makers. One without a lock may be one whose maker has not come to it yet."""
    for folder in directory.glob(f"{TEMPORARY}*"):
        try:
            with open(folder / "lock") as file:
                lock(file.fileno())
        except OSError:  # its owner lives, or has not come to it yet, or it is another user's
            continue
        shutil.rmtree(folder, ignore_errors=True)
