"""Files of shared memory whose makers were killed before they could unlink them."""

import contextlib
import fcntl
import os
from pathlib import Path

WEIGHTS = "cohort-weights-"


def lock(fd: int) -> None:
    """Until it is closed, by its maker's death as well: the file is somebody's. To be called while
    it is empty."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_weights(directory: Path) -> None:
    """Those of dead makers. An empty file may be one whose maker has not locked it yet."""
    for path in directory.glob(f"{WEIGHTS}*"):
        with contextlib.suppress(OSError):  # somebody's, another user's, or gone
            fd = os.open(path, os.O_RDONLY)
            try:
                if os.fstat(fd).st_size:
                    lock(fd)
                    os.unlink(path)
            finally:
                os.close(fd)
