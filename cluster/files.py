"""Small files of a run folder: whole or not there, and nothing overwritten that was put aside."""

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """The file's new content, all of it at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=1) + "\n")


def free_name(path: Path) -> Path:
    """The first of `path.1`, `path.2`, ... that is not there yet."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def add_line(path: Path, value: Any) -> None:
    whole_lines(path)
    add_lines(path, [value])


def add_lines(path: Path, values: Sequence[Any]) -> None:
    """Behind the last, which is whole."""
    lines = "".join(json.dumps(value) + "\n" for value in values).encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        append(file, lines)
    finally:
        os.close(file)


def append(file: int, lines: bytes) -> None:
    """All of them or nothing. Raises OSError when the disk does not take them."""
    size = os.fstat(file).st_size
    try:
        if os.write(file, lines) == len(lines):
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):  # a disk that takes nothing any more
            os.ftruncate(file, size)
        raise


def read_lines(path: Path) -> list[Any]:
    """Of a file with a JSON value per line; none when it is not there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def whole_lines(path: Path) -> None:
    """Cut a last line that its writer died in, so that the next one does not grow onto it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
