"""The processes in which verifiers run: `python -m rewards.child SOCKET_FD`.

A nursery imports the verifiers once and forks a child per request, in milliseconds; a child scores
groups until it is killed. Both speak JSON lines. A child has pipes of its own, so a verifier that
prints disturbs nobody, and says in shared memory which completion it is at, so that a hang has a
culprit. The nursery ends with its actor, whatever killed that; children end with the nursery.
"""

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rewards.packed import Piece, pack_verdict, unpack_group
from rewards.programs import confine
from rewards.score import Verdict
from rewards.verifiers import Judge, Verifier, load

PR_SET_CHILD_SUBREAPER = 36
MESSAGE = 32
"""Bytes of a request to the nursery."""
PROGRESS = struct.Struct("=qq")
"""(item, nanoseconds of the monotonic clock when it began); an item is a completion's number."""
FLUSH_SECONDS = 0.02
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
        progress = mmap.mmap(memory_fd, mmap.PAGESIZE)
        unread = b""
        with os.fdopen(write_fd, "wb") as replies:
            while data := os.read(read_fd, 1 << 20):
                *lines, unread = (unread + data).split(b"\n")
                sent = time.monotonic()
                for line in lines:
                    request = json.loads(line)
                    for reply in _verdicts(verifiers, request, progress):
                        reply["id"] = request["id"]
                        replies.write(json.dumps(reply).encode() + b"\n")
                        if not reply["end"] or time.monotonic() - sent > FLUSH_SECONDS:
                            replies.flush()
                            sent = time.monotonic()
                replies.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _verdicts(verifiers: list[Verifier], request: dict[str, Any], progress: mmap.mmap) -> Any:
    """Replies: a `Piece` each, with `end` on the last and `done` on one of a verifier of whole
    groups. Items are the numbers of completions, and behind them one for each such verifier."""
    task, attempts = unpack_group(request)
    singles = [(v.name, v.judge_of(task)) for v in verifiers if not v.form.batch]
    groups = [verifier for verifier in verifiers if verifier.form.batch]
    piece = _piece(singles)
    now = sent = time.monotonic()
    for number in request["items"]:
        PROGRESS.pack_into(progress, 0, number, time.monotonic_ns())
        whole_group = number >= len(attempts)
        if piece["items"] and (whole_group or now - sent > FLUSH_SECONDS):
            yield piece
            piece, sent = _piece(singles), now
        if whole_group:
            verifier = groups[number - len(attempts)]
            found = verifier.group(task, attempts)
            more = [[i, verifier.name, pack_verdict(verdict)] for i, verdict in enumerate(found)]
            yield {**_piece([]), "more": more, "done": number}
            now = time.monotonic()
            continue
        piece["items"].append(number)
        for name, judge in singles:
            said = judge(attempts[number])
            begun, now = now, time.monotonic()
            values, seconds = piece["plain"][name]
            if said is None or isinstance(said, Verdict):
                piece["more"].append([number, name, pack_verdict(said)])
                said, begun = 0.0, now
            values.append(said)
            seconds.append(now - begun)
    PROGRESS.pack_into(progress, 0, -1, 0)
    yield {**piece, "end": True}


def _piece(singles: list[tuple[str, Judge]]) -> Piece:
    plain: dict[str, Any] = {name: ([], []) for name, _ in singles}
    return {"items": [], "plain": plain, "more": [], "end": False}


if __name__ == "__main__":
    main(int(sys.argv[1]))
