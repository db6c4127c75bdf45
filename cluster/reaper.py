"""A process that outlives the driver by seconds: `python cluster/reaper.py FOLDER`, with the end of
a pipe as its standard input. When the driver is gone, however it went, whoever still carries the
run's mark a moment later is killed.

Ray's processes end with those who started them, but a worker that was only just being started looks
for its head for half a minute first.

It imports nothing else of ours, to be there at once.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN_MARK = "COHORT_RUN"
"""Environment variable of every process of a run: its run folder."""
DRIVER_MARK = "COHORT_DRIVER"
"""Whose: the same run may be started again while the reaper of its last driver is at work."""
GOODBYE = b"."
"""Of a driver that ends in order"""
GRACE_SECONDS = 4.0
"""For those that end by themselves."""


def marks_of(folder: Path, driver: str = "") -> dict[str, str]:
    """The environment of a run's processes."""
    return {RUN_MARK: str(folder.resolve())} | ({DRIVER_MARK: driver} if driver else {})


def identity() -> str:
    """Of this process, and of no later one of its number."""
    began = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    return f"{os.getpid()}-{began}"


def processes_of(folder: Path, driver: str = "") -> list[int]:
    """Of a run, or of what one driver of it started, on this machine, but for the one that asks."""
    marks = {f"{name}={value}".encode() for name, value in marks_of(folder, driver).items()}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = marks <= {*(process / "environ").read_bytes().split(b"\0")}
            marked = marked or (bool(driver) and _is_helper_of(process, driver))
        except OSError:  # another user's, or gone
            continue
        if marked and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def _is_helper_of(process: Path, driver: str) -> bool:
    """Ray's agents write their titles over their environment, marks included; what they have open
    lies in a folder that Ray calls by the number of the driver."""
    if not (process / "cmdline").read_bytes().startswith(b"ray::"):
        return False
    session = re.compile(rf"/session_[-_0-9]+_{driver.partition('-')[0]}/")
    for file in (process / "fd").iterdir():
        try:
            if session.search(os.readlink(file)):
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:  # gone
            continue


def start(folder: Path) -> subprocess.Popen[bytes]:
    """To be told by `stop` that the driver ends, or by the driver's end itself."""
    environment = {name: value for name, value in os.environ.items() if name != RUN_MARK}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder.resolve()), identity()],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is not for it
    )


def stop(reaper: subprocess.Popen[bytes]) -> None:
    """Returns when nothing that this driver started is left, or after `2 * GRACE_SECONDS`."""
    try:
        reaper.communicate(GOODBYE, timeout=2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        reaper.kill()
        reaper.wait()


def reap(folder: Path, driver: str, *, orderly: bool) -> None:
    """Who ended in order has started nobody in its last moment; who was killed may have, and what
    that one starts in its turn comes later still."""
    ended = time.monotonic()
    while time.monotonic() < ended + (2 if orderly else 3) * GRACE_SECONDS:
        left = processes_of(folder, driver)
        if orderly and not left:
            return
        if time.monotonic() > ended + GRACE_SECONDS:
            kill(left)
        time.sleep(0.1)


if __name__ == "__main__":
    said = sys.stdin.buffer.read()
    reap(Path(sys.argv[1]), sys.argv[2], orderly=said == GOODBYE)
