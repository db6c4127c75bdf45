"""A process that outlives the driver by seconds: `python cluster/reaper.py FOLDER`, with the end of
a pipe as its standard input. When the driver is gone, however it went, whoever still carries the
run's mark a moment later is killed.

Ray's processes end with those who started them, but a worker that was only just being started looks
for its head for half a minute first.

It imports nothing else of ours, to be there at once.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN_MARK = "COHORT_RUN"
"""Environment variable of every process of a run: its run folder."""
GRACE_SECONDS = 4.0
"""For those that end by themselves."""


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
        [sys.executable, "-I", "-S", __file__, str(folder.resolve())],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is not for it
    )


def stop(reaper: subprocess.Popen[bytes]) -> None:
    """Returns when nothing of the run is left."""
    try:
        reaper.communicate(timeout=2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        reaper.kill()
        reaper.wait()


def reap(folder: Path) -> None:
    # The same run may be started again meanwhile: its processes are none of those of now.
    ended = time.clock_gettime(time.CLOCK_BOOTTIME)
    deadline = ended + GRACE_SECONDS
    while left := [pid for pid in processes_of(folder) if began(pid) < ended]:
        if time.clock_gettime(time.CLOCK_BOOTTIME) > deadline:
            kill(left)
            return
        time.sleep(0.1)


def began(pid: int) -> float:
    """Seconds after the machine's start; without end for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return float("inf")
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.stdin.buffer.read()
    reap(Path(sys.argv[1]))
