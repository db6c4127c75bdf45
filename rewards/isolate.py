"""Scoring children that can be killed.

Verifiers of model output hang (symbolic maths) or worse; threads and SIGALRM cannot stop them, a
process can be stopped. This is containment of accidents, not a security sandbox: programs written
by the model run in `rewards/programs/sandbox.py`.
"""

import contextlib
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rewards.child import AT, BEGUN, MESSAGE
from rewards.packed import Frames, Reply, frame_request, read_reply

SEND_SECONDS = 10.0
"""For a child to go on reading its request."""
START_SECONDS = 60.0
"""A nursery imports `rewards` and the user's own verifier modules; a minute is generous."""


class ChildTimeout(Exception):
    """The child did not answer in time. `item` is what it was at."""

    def __init__(self, message: str, item: int) -> None:
        super().__init__(message)
        self.item = item


class ChildDied(Exception):
    """The child ended without an answer. `item` is what it was at, if it had `begun` at all."""

    def __init__(self, message: str, item: int, begun: bool) -> None:
        super().__init__(message)
        self.item = item
        self.begun = begun


class Nursery:
    """The process that children are forked from. Raises ValueError when the verifiers cannot be
    loaded, RuntimeError when it does not start."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(dict.fromkeys([root, os.getcwd(), *filter(None, sys.path)]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._socket = ours
        ours.settimeout(START_SECONDS)
        try:
            ours.sendall(json.dumps(self._settings).encode() + b"\n")
            hello = b""
            while not hello.endswith(b"\n"):
                data = ours.recv(1 << 16)
                if not data:
                    raise RuntimeError(f"it ended with exit status {self._process.wait()}")
                hello += data
        except (OSError, RuntimeError) as error:
            self.close()
            raise RuntimeError(f"the scoring process did not start: {error}") from error
        said = json.loads(hello)
        if "error" in said:
            self.close()
            raise (ValueError if said["input"] else RuntimeError)(said["error"])
        self.verifiers: list[tuple[str, bool]] = said["verifiers"]
        """Each one's name, and whether it judges whole groups."""

    def fork(self, fds: list[int]) -> int:
        """A new child that has these descriptors; its pid. A nursery that died is replaced."""
        with self._lock:
            try:
                return self._fork(fds)
            except (OSError, struct.error):
                self.close()
                self._start()
                return self._fork(fds)

    def _fork(self, fds: list[int]) -> int:
        socket.send_fds(self._socket, [b"fork".ljust(MESSAGE)], fds)
        return struct.unpack("=q", self._socket.recv(8))[0]

    def reap(self, pid: int) -> None:
        with self._lock:
            try:
                self._socket.sendall(f"reap {pid}".encode().ljust(MESSAGE))
                if struct.unpack("=q", self._socket.recv(8))[0] != pid:
                    raise OSError("out of step")
            except (OSError, struct.error):
                self.close()  # the next fork starts another

    def close(self) -> None:
        """End it; at the end of its socket it ends all children and what they started."""
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()


class Child:
    """A warm scoring process, which `kill` ends with whatever it started."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        memory = os.memfd_create("progress")
        os.ftruncate(memory, mmap.PAGESIZE)
        try:
            self._memory = mmap.mmap(memory, mmap.PAGESIZE)
            self._progress = memoryview(self._memory).cast("q")
            self.pid = nursery.fork([to_child, from_child, memory])
        finally:
            for fd in (to_child, from_child, memory):
                os.close(fd)
        os.set_blocking(self._write, False)
        self._frames = Frames()
        self._sent = 0

    def send(self, items: list[list[int]], data: bytes) -> None:
        """The items that are to be judged, by group, and the packed groups. Raises ChildDied."""
        self._sent = time.monotonic_ns()
        unsent = memoryview(frame_request(self._sent, items, data))
        self._progress[AT] = next(item for group in items for item in group)
        self._progress[BEGUN] = self._sent
        try:
            while unsent:
                # Answers are taken meanwhile, or each could wait for the other to read.
                ready = select.select([self._read], [self._write], [], SEND_SECONDS)
                if ready[0]:
                    self._take()
                elif not ready[1]:
                    raise self._died()
                if ready[1]:
                    unsent = unsent[os.write(self._write, unsent) :]
        except BrokenPipeError as error:
            raise self._died() from error

    def _take(self) -> None:
        data = os.read(self._read, 1 << 20)
        if not data:
            raise self._died()
        self._frames.feed(data)

    def _died(self) -> ChildDied:
        item, begun = self._at()
        return ChildDied("the scoring child died", item, begun != self._sent)

    def receive(self, seconds: float, patience: float = 0.0) -> Reply | None:
        """The child's next reply; None once an item has taken `patience` seconds (unless 0). Raises
        ChildTimeout once it has taken `seconds`, ChildDied."""
        looked_at, waited_before = -2, 0.0
        while (frame := self._frames.take()) is None:
            now = time.monotonic()  # before a look: this process may lose its CPU between the two
            item, begun = self._at()
            if item != looked_at:
                looked_at, waited_before = item, waited_on_cpu(self.pid)
            left = begun / 1e9 + seconds - now if item >= 0 else seconds
            if left <= 0:
                # A busy machine is nobody's fault: the time in which it stood in line for a CPU
                # does not count, but for a limit.
                waited = waited_on_cpu(self.pid) - waited_before
                left += min(waited, MOST_WAITING * seconds)
                if left <= 0:
                    raise ChildTimeout(f"scoring took more than {seconds:g} s", item)
            if patience and item >= 0:
                if now - begun / 1e9 >= patience:
                    return None
                left = min(left, begun / 1e9 + patience - now)
            if not select.select([self._read], [], [], min(left, 1.0))[0]:
                # Looked at once a second besides: what the verifier forked may hold the pipe open
                # when the child itself is gone.
                if not is_alive(self.pid):
                    raise self._died()
                continue
            self._take()
        try:
            reply = read_reply(frame)
        except ValueError as error:
            raise ChildDied(
                f"the scoring child's reply is none: {error}", self._at()[0], True
            ) from error
        if reply.sent != self._sent:  # one request's verdicts are never another's
            raise ChildDied("the scoring child is out of step", self._at()[0], True)
        return reply

    def _at(self) -> tuple[int, int]:
        """The item that it is at, and when that began."""
        return self._progress[AT], self._progress[BEGUN]

    def kill(self) -> None:
        """End the child and whatever it started; nothing of it is left afterwards."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, 9)
        self._nursery.reap(self.pid)
        for fd in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._progress.release()
        self._memory.close()


MOST_WAITING = 3.0
"""How many times the timeout a child may have stood in line for a CPU."""


def waited_on_cpu(pid: int) -> float:
    """Seconds that a process stood ready and had no CPU; 0 where the kernel does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
