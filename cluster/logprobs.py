"""What the policy in training gave the tokens of a step before it was trained on them, one file a
step beside the step's table: for people to look at. Nothing that runs reads it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rollout.schema import write_table

COLUMN = "learner_logprobs"


def path_of(folder: Path, step: int) -> Path:
    """In a run folder."""
    return folder / "logprobs" / f"{step:06d}.arrow"


def write(folder: Path, step: int, logprobs_N: Sequence[np.ndarray]) -> None:
    """Float32 [T] for each row of the step's table, in its order. Raises OSError."""
    path = path_of(folder, step)
    path.parent.mkdir(exist_ok=True)
    column = pa.array(logprobs_N, type=pa.list_(pa.float32()))
    write_table(pa.table({COLUMN: column}), path)


def forget(folder: Path, step: int) -> None:
    """With the table that they are about."""
    path_of(folder, step).unlink(missing_ok=True)


def read(folder: Path, step: int) -> pa.ChunkedArray | None:
    """None where they were not recorded, or cannot be read."""
    try:
        with pa.memory_map(str(path_of(folder, step))) as source:
            return pa.ipc.open_file(source).read_all()[COLUMN]
    except (OSError, pa.ArrowInvalid, KeyError):
        return None
