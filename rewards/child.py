"""The processes in which verifiers run: `python -m rewards.child SOCKET_FD`.

A nursery imports the verifiers once and forks a child per request, in milliseconds; a child scores
groups until it is killed. A child has pipes of its own, so a verifier that prints disturbs nobody,
and says in shared memory which completion it is at, so that a hang has a culprit. The nursery ends
with its actor, whatever killed that; children end with the nursery.
"""

import contextlib
import gc
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from array import array
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import cast

from rewards.packed import Frames, Reply, pack_more, read_request, unpack_groups
from rewards.programs import confine
from rewards.score import Verdict
from rewards.verifiers import Verifier, judged, load, timed

PR_SET_CHILD_SUBREAPER = 36
MESSAGE = 32
"""Bytes of a request to the nursery."""
AT, BEGUN = 0, 1
"""Places of the shared memory: the item, a completion's number or -1, and the nanoseconds of the
monotonic clock when it began."""
FLUSH_NANOSECONDS = 20_000_000
"""Verdicts wait this long for company before they are sent."""


def main(fd: int) -> None:
    confine.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    with socket.socket(fileno=fd) as actor:
        lines = actor.makefile("rb")
        settings = json.loads(lines.readline())
        _limit(settings["memory_gib"])
        try:
            verifiers = [load(**each) for each in settings["verifiers"]]
            _warm(verifiers)
        except (ValueError, RuntimeError) as error:
            said = {"error": str(error), "input": isinstance(error, ValueError)}
            actor.sendall(json.dumps(said).encode() + b"\n")
            return
        gc.freeze()  # what is here before the forks is looked through by none of them
        gc.set_threshold(20_000, 10, 10)  # or a parcel of quick verifiers is looked through often
        names = [(verifier.name, verifier.form.batch) for verifier in verifiers]
        actor.sendall(json.dumps({"verifiers": names}).encode() + b"\n")
        _serve(actor, verifiers)


def _serve(actor: socket.socket, verifiers: list[Verifier]) -> None:
    """Fork and reap on demand, until the actor's end of the socket is closed."""
    nursery = os.getpid()
    children: set[int] = set()
    while True:
        message, fds, *_ = socket.recv_fds(actor, MESSAGE, 3)
        if not message:
            break
        if message.startswith(b"reap"):
            pid = int(message.split()[1])
            with contextlib.suppress(ChildProcessError):  # a child of a nursery before this one
                os.waitpid(pid, 0)  # only now may its number be another's
            children.discard(pid)
            _end_orphans(children)
            actor.sendall(struct.pack("=q", pid))
            continue
        pid = os.fork()
        if pid == 0:
            os.close(actor.detach())
            _child(verifiers, nursery, *fds)
        os.setpgid(pid, pid)  # here and there: whoever comes first, it leads its group by now
        children.add(pid)
        for fd in fds:
            os.close(fd)
        actor.sendall(struct.pack("=q", pid))
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _end_orphans(children: set[int]) -> None:
    """What a verifier started in a session of its own falls to the nursery, its subreaper."""
    with contextlib.suppress(FileNotFoundError):
        for text in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if int(text) not in children:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(int(text), signal.SIGKILL)
                    os.waitpid(int(text), 0)


def _limit(memory_gib: float) -> None:
    limit = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stack, hard = 64 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard == resource.RLIM_INFINITY or hard >= stack:  # for deep recursion in programs
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def _warm(verifiers: list[Verifier]) -> None:
    """What the first completion would otherwise wait for, done before any fork."""
    from rewards import formats, maths
    from rewards.programs.sandbox import best_tier

    for verifier in verifiers:
        if verifier.built_in == "math":
            maths.warm()
        if verifier.built_in == "language":
            formats.identifier()
        if verifier.built_in == "code":
            best_tier(allow_unsandboxed=bool(verifier.options.get("allow_unsandboxed")))


def _child(
    verifiers: list[Verifier], nursery: int, read_fd: int, write_fd: int, memory_fd: int
) -> None:
    """Never returns."""
    try:
        os.setpgid(0, 0)  # killing its group ends what a verifier started, too
        confine.die_with_parent(nursery)
        progress = memoryview(mmap.mmap(memory_fd, mmap.PAGESIZE)).cast("q")
        frames = Frames()
        with os.fdopen(write_fd, "wb") as replies:
            while data := os.read(read_fd, 1 << 20):
                frames.feed(data)
                while frame := frames.take():
                    for reply in _judge(verifiers, frame, progress):
                        replies.write(reply.frame())
                        replies.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _judge(verifiers: list[Verifier], frame: bytes, progress: memoryview) -> Iterator[Reply]:
    """Replies about the items of each group of a parcel, in their order.

    A group alone is judged and timed item by item. Several come together only where verifiers are
    quick: there a look at the clock is a tenth of one, and each group is timed as a whole. When it
    hangs, it is sent again alone, and then the culprit is known.
    """
    sent, items, data = read_request(frame)
    groups = unpack_groups(data)
    singles = [verifier for verifier in verifiers if not verifier.form.batch]
    wholes = [verifier for verifier in verifiers if verifier.form.batch]
    completions = sum(len(columns.text) for _, columns in groups)
    alone = sum(map(bool, items)) == 1
    said = Said(sent, [verifier.name for verifier in singles])
    start = 0
    for (task, columns), wanted in zip(groups, items, strict=True):
        size = len(columns.text)
        own = [item for item in wanted if item < completions] if wholes else wanted
        if own:
            asked = columns
            if len(own) < size:
                asked = columns.only([item - start for item in own])
            calls = [verifier.call_of(task, asked) for verifier in singles]
            step = 1 if alone else size
            for at in range(0, len(own), step):
                if said.is_due():
                    yield said.reply()
                    said.begin()  # behind the pipe, which may have been full
                stretch = own[at : at + step]
                progress[AT], progress[BEGUN] = stretch[0], said.now
                said.items += stretch
                for verifier, (call, given) in enumerate(calls):
                    part = [values[at : at + step] for values in given] if alone else given
                    said.add(verifier, judged(call, part))
        for item in wanted[len(own) :]:
            if said.items:
                yield said.reply()
                said.begin()
            progress[AT], progress[BEGUN] = item, said.now
            whole = wholes[(item - completions) % len(wholes)]
            verdicts = enumerate(whole.group(task, columns.attempts()), start)
            more = [(number, whole.name, verdict) for number, verdict in verdicts]
            yield Reply(sent, False, 1, b"", pack_more(more))
            said.begin()
        start += size
    progress[AT] = -1
    yield said.reply(end=True)


class Said:
    """What the next reply is made of."""

    def __init__(self, sent: int, names: list[str]) -> None:
        self._sent = sent
        self._names = names
        self.begin()

    def begin(self) -> None:
        self.items: list[int] = []
        self.values: list[list[float | Verdict | None]] = [[] for _ in self._names]
        """By verifier, of `items`"""
        self._seconds: list[list[float]] = [[] for _ in self._names]
        self.now = self._begun = monotonic_ns()

    def is_due(self) -> bool:
        return self.now - self._begun > FLUSH_NANOSECONDS

    def add(self, verifier: int, values: list[float | Verdict | None]) -> None:
        """What one says of the last of the items. It began when the one before had ended."""
        begun, self.now = self.now, monotonic_ns()
        self.values[verifier] += values
        self._seconds[verifier] += [(self.now - begun) * 1e-9 / len(values)] * len(values)

    def reply(self, *, end: bool = False) -> Reply:
        numbers: list[array[float]] = []
        more: list[tuple[int, str, Verdict | None]] = []
        for name, values, seconds in zip(self._names, self.values, self._seconds, strict=True):
            for place, value in enumerate(values):
                if type(value) is not float:
                    more.append((self.items[place], name, timed(value, seconds[place])))
                    values[place] = seconds[place] = 0.0
            numbers += array("d", cast(list[float], values)), array("d", seconds)
        packed = b"".join(numbers), pack_more(more)
        return Reply(self._sent, end, len(self.items), *packed)


if __name__ == "__main__":
    main(int(sys.argv[1]))
