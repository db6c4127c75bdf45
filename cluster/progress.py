"""One line that shows what is happening inside a step; plain lines where there is no terminal.

step 12/150 · rollout 40/64 · scored 38 · update 2/4 · publish · reward 0.61 · ETA 3 min
"""

import asyncio
import contextlib
import shutil
import sys
import time
from collections import deque
from typing import Literal, TextIO

HEARTBEAT_SECONDS = 20.0
"""Without a terminal: how long nothing may be printed."""


class Progress:
    """State is set from outside (`progress.phase = "publish"`); a task of its own draws it."""

    def __init__(
        self, style: Literal["auto", "line", "plain"] = "auto", stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stdout
        self._live = style == "line" or (style == "auto" and self._stream.isatty())
        self._printed_at = time.monotonic()
        self._step_ends: deque[float] = deque([time.monotonic()], maxlen=20)
        self.step = 0
        self.steps = 0
        self.phase = ""
        self.groups: tuple[int, int] = (0, 0)
        """(sampled, wanted) of the step that is being collected"""
        self.scored = 0
        self.update: tuple[int, int] = (0, 0)
        """(micro-batches done, micro-batches)"""
        self.reward: float | None = None

    def render(self) -> str:
        if not self.steps:
            return self.phase
        # Inside a step its own number is shown; between steps that of the last one done.
        inside = self.phase in ("rollout", "update", "publish")
        parts = [f"step {min(self.step + inside, self.steps)}/{self.steps}"]
        if self.phase == "rollout":
            done, wanted = self.groups
            parts += [f"rollout {done}/{wanted}", f"scored {self.scored}"]
        elif self.phase == "update" and self.update[1]:
            parts.append(f"update {self.update[0]}/{self.update[1]}")
        elif self.phase:
            parts.append(self.phase)
        if self.reward is not None:
            parts.append(f"reward {self.reward:.2f}")
        if (eta := self._eta()) is not None:
            parts.append(f"ETA {duration(eta)}")
        return " · ".join(parts)

    def _eta(self) -> float | None:
        if len(self._step_ends) < 2:
            return None
        per_step = (self._step_ends[-1] - self._step_ends[0]) / (len(self._step_ends) - 1)
        return per_step * (self.steps - self.step)

    def begin(self, step: int, steps: int) -> None:
        self.step, self.steps = step, steps
        self._step_ends = deque([time.monotonic()], maxlen=20)

    def end_step(self, step: int) -> None:
        self.step = step
        self._step_ends.append(time.monotonic())

    def line(self, text: str) -> None:
        """A line that stays."""
        start = "\r\x1b[2K" if self._live else ""
        print(f"{start}{text}", file=self._stream, flush=True)
        self._printed_at = time.monotonic()

    def step_line(self, text: str) -> None:
        """What a finished step has to say, where there is no live line; at most one a second."""
        self.phase = ""
        if not self._live and time.monotonic() - self._printed_at >= 1.0:
            self.line(f"{self.render()} · {text}")

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)

    def _draw(self) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{self.render()[:width]}", end="", file=self._stream, flush=True)
        elif time.monotonic() - self._printed_at > HEARTBEAT_SECONDS:
            self.line(self.render())

    @contextlib.asynccontextmanager
    async def shown(self):
        """Draw for as long as the block runs."""
        task = asyncio.create_task(self._keep_drawing())
        try:
            yield
        finally:
            task.cancel()
            self.clear()

    async def _keep_drawing(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(0.3)


def duration(seconds: float) -> str:
    """ "42 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
