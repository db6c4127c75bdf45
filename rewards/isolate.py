"""A verifier child that can be killed.

Verifiers of model output hang (symbolic maths) or worse; threads and SIGALRM cannot stop them, a
process can be stopped. This is containment of accidents, not a security sandbox: programs written
by the model need the sandbox, which is not here.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
"""A child imports only `rewards` and the user's own verifier module; a minute is generous."""


class ChildTimeout(Exception):
    """The child did not answer in time."""


class ChildDied(Exception):
    """The child ended without an answer."""


class Child:
    """A warm scoring process. Raises ValueError when the verifiers cannot be loaded."""

    def __init__(self, settings: dict[str, Any]) -> None:
        to_child_read, self._write = os.pipe()
        self._read, from_child_write = os.pipe()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(dict.fromkeys([root, os.getcwd(), *filter(None, sys.path)]))
        arguments = (to_child_read, from_child_write, os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.child", *map(str, arguments)],
                pass_fds=(to_child_read, from_child_write),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # killing its group ends what a verifier started, too
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(to_child_read)
            os.close(from_child_write)
        self._buffer = b""
        try:
            self.send(settings)
            hello = self.receive(START_SECONDS)
        except (ChildTimeout, ChildDied) as error:
            self.kill()
            raise RuntimeError(
                f"a scoring child did not start within {START_SECONDS:.0f} s: {error}"
            ) from error
        if "error" in hello:
            self.kill()
            raise ValueError(hello["error"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except BrokenPipeError as error:
            raise ChildDied(f"exit status {self._process.poll()}") from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """The child's next line. Raises ChildTimeout or ChildDied."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChildTimeout(f"no answer within {seconds} s")
            # Looked at once a second besides: a process that the verifier forked may hold the pipe
            # open when the child itself is gone.
            if not select.select([self._read], [], [], min(left, 1.0))[0]:
                if self._process.poll() is not None:
                    raise ChildDied(f"exit status {self._process.poll()}")
                continue
            data = os.read(self._read, 1 << 16)
            if not data:
                raise ChildDied(f"exit status {self._process.poll()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """End the child and whatever it started; nothing of it is left afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for fd in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(fd)
