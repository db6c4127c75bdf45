"""Nothing of a run outlives it: no process, no temporary folder."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from cluster.reaper import kill, processes_of
from rollout.leftovers import remove_folders

GONE_SECONDS = 5.0
"""For processes that were killed to be gone."""
SESSION = ".ray_session"
"""File of a run folder: where the Ray that was started for it has its own. There while it runs."""
START_SECONDS = 120.0
"""Between asking for a Ray and its folder."""


def remember_session(folder: Path) -> None:
    """Before Ray is started: a driver may be killed while it starts. Ray calls its folder by the
    time and the number of the process that asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    pattern = f"{temporary}/ray/session_*_{os.getpid()}"
    (folder / SESSION).write_text(f"{time.time()}\n{pattern}\n")  # not the file's: another clock


def forget_session(folder: Path, *, keep_logs: bool) -> None:
    """Remove what Ray wrote on this machine; its logs go to `ray_logs/` of the run folder where
    they may say why a run failed."""
    file = folder / SESSION
    if not file.exists():
        return
    asked, pattern = _remembered(file)
    for session in pattern.parent.glob(pattern.name):
        if not -1 <= _begun(session) - asked < START_SECONDS:  # of another process of that number
            continue
        if keep_logs and (session / "logs").is_dir():
            with contextlib.suppress(OSError):  # a full disk may be why it failed
                shutil.copytree(session / "logs", folder / "ray_logs", dirs_exist_ok=True)
        shutil.rmtree(session, ignore_errors=True)
    with contextlib.suppress(OSError):  # read-only: the next run that sweeps finds nothing there
        file.unlink()


def _remembered(file: Path) -> tuple[float, Path]:
    lines = file.read_text().splitlines()
    if len(lines) != 2:  # its writer was killed, or was an earlier version
        return 0.0, Path("/nothing")
    return float(lines[0]), Path(lines[1])


def _begun(session: Path) -> float:
    """When, by the name that Ray gave it: session_2026-11-22_06-27-04_559845_24156."""
    try:
        return time.mktime(time.strptime(session.name[8:27], "%Y-%m-%d_%H-%M-%S"))
    except ValueError:
        return -1e12


def sweep(folder: Path) -> int:
    """Kill its processes, the frozen ones included, and remove what they left in temporary places
    of this machine; how many processes there were."""
    found = processes_of(folder)
    kill(found)
    deadline = time.monotonic() + GONE_SECONDS
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    forget_session(folder, keep_logs=True)
    for resharded in folder.glob("checkpoints/resharded-*"):
        shutil.rmtree(resharded, ignore_errors=True)
    remove_folders(Path(tempfile.gettempdir()))
    return len(found)
