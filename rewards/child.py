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

from rewards.programs import confine
from rewards.score import Attempt, Task, Verdict
from rewards.verifiers import Verifier, load

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
        actor.sendall(b'{"ready": true}\n')
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
        with os.fdopen(read_fd, "rb") as requests, os.fdopen(write_fd, "wb") as replies:
            for line in requests:
                request = json.loads(line)
                for reply in _verdicts(verifiers, request, progress):
                    reply["id"] = request["id"]
                    replies.write(json.dumps(reply).encode() + b"\n")
                    replies.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _verdicts(verifiers: list[Verifier], request: dict[str, Any], progress: mmap.mmap) -> Any:
    """Replies `{"items": [[completion, {name: verdict}], ...], "end": bool}`. Items are the
    numbers of completions, and behind them one for each verifier of whole groups."""
    task = Task(**request["task"])
    attempts = [
        Attempt(text=text, num_tokens=count, truncated=truncated, token_ids=ids)
        for text, count, truncated, ids in request["attempts"]
    ]
    singles = [verifier for verifier in verifiers if not verifier.form.batch]
    groups = [verifier for verifier in verifiers if verifier.form.batch]
    done: list[list[Any]] = []
    sent = time.monotonic()
    for number in request["items"]:
        begun = time.monotonic()
        progress[: PROGRESS.size] = PROGRESS.pack(number, int(begun * 1e9))
        whole_group = number >= len(attempts)
        if done and (whole_group or begun - sent > FLUSH_SECONDS):
            yield {"items": done, "end": False}
            done, sent = [], begun
        if not whole_group:
            found = {v.name: pack(v.one(task, attempts[number])) for v in singles}
            done.append([number, found])
            continue
        verifier = groups[number - len(attempts)]
        found = verifier.group(task, attempts)
        said = [[i, {verifier.name: pack(verdict)}] for i, verdict in enumerate(found)]
        yield {"items": said, "end": False, "done": number}
    progress[: PROGRESS.size] = PROGRESS.pack(-1, 0)
    yield {"items": done, "end": True}


def pack(verdict: Verdict | None) -> list[Any] | None:
    """As JSON; `unpack` is its inverse."""
    if verdict is None:
        return None
    plain = [verdict.value, verdict.seconds]
    if verdict.outcome == "scored" and not (verdict.note or verdict.steps or verdict.parts):
        return plain
    return [*plain, verdict.outcome, verdict.note, verdict.steps, dict(verdict.parts)]


def unpack(packed: list[Any] | None) -> Verdict | None:
    if packed is None:
        return None
    value, seconds, *rest = packed
    if not rest:
        return Verdict(value=value, seconds=seconds)
    outcome, note, steps, parts = rest
    steps = tuple((end, step) for end, step in steps)
    return Verdict(
        value=value, seconds=seconds, outcome=outcome, note=note, steps=steps, parts=parts
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
