"""Where metrics are shown besides `metrics.jsonl`. Nothing that a tracker does reaches the run.

Each lives in a thread of its own behind a queue. Rows that it refuses, or that find the queue full
because it blocks, are counted, and nobody waits for it.
"""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

MOST_WAITING = 1000
"""Rows; a tracker that is this far behind loses the next ones."""
LAST_SECONDS = 10.0
"""For what is in the queue when the run ends."""


class Tracker(Protocol):
    def write(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Aside:
    """A tracker, kept from whoever writes to it. `make` is called in its thread, too: connecting
    may take as long as it likes."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.lost = 0
        """Rows that it did not take."""
        self.why = ""
        """The first failure"""
        self._make = make
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        try:
            self._rows.put_nowait((step, metrics))
        except queue.Full:
            self._miss(f"it is {MOST_WAITING} rows behind")

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """What waits is written if that takes no longer."""
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            seconds = 0.0
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.lost += self._rows.qsize()
            self._miss("it hung when the run ended")

    def _miss(self, why: str) -> None:
        self.lost += 1
        self.why = self.why or why

    def _work(self) -> None:
        tracker: Tracker | None = None
        while (row := self._rows.get()) is not None:
            try:
                tracker = tracker or self._make()
                tracker.write(*row)
            except Exception as error:  # whatever it is, the run has nothing to do with it
                self._miss(f"{type(error).__name__}: {error}")
        try:
            if tracker is not None:
                tracker.close()
        except Exception as error:
            self._miss(f"{type(error).__name__}: {error}")
