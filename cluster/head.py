"""Ray's head, without which nothing can be asked of the cluster."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

import ray

ASK_SECONDS = 2.0
LOST_SECONDS = 30.0
"""Without an answer. After 60, Ray aborts the process."""
LEAVE_SECONDS = 15.0
"""More, for an orderly end."""


class Head:
    """Asked in a thread of its own, which nobody waits for: without a head, calls hang."""

    def __init__(self) -> None:
        self.free: Mapping[str, float] = {}
        """What the cluster has free, as it said last."""
        self._seen = time.monotonic()

    async def watch(self, version: Callable[[], int]) -> None:
        """Raises RuntimeError when it is gone: soon after, Ray would end this process."""
        address = ray.get_runtime_context().gcs_address
        self._seen = time.monotonic()

        def told() -> str:
            return (
                f"Ray's head at {address} has not answered for {LOST_SECONDS:.0f} s: the cluster "
                "is lost. The same command on another cluster, with this run folder, goes on from "
                f"step {version()}"
            )

        threading.Thread(target=self._ask, daemon=True).start()
        threading.Thread(target=self._leave, args=[told], daemon=True).start()
        while self._silence < LOST_SECONDS:
            await asyncio.sleep(ASK_SECONDS)
        raise RuntimeError(told())

    @property
    def _silence(self) -> float:
        return time.monotonic() - self._seen

    def _leave(self, told: Callable[[], str]) -> None:
        """Where the loop cannot: it hangs in a call of Ray's, or the end of the run does."""
        while ray.is_initialized():
            if self._silence > LOST_SECONDS + LEAVE_SECONDS:
                print(f"error: {told()}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(ASK_SECONDS)

    async def is_there(self) -> None:
        """Until it has been heard of: what is asked of it meanwhile would hang, this whole process
        with it."""
        while self._silence > 3 * ASK_SECONDS:
            await asyncio.sleep(ASK_SECONDS)

    def _ask(self) -> None:
        while ray.is_initialized():
            try:
                self.free = ray.available_resources()
                self._seen = time.monotonic()
            except Exception:  # Ray has many words for it
                pass
            time.sleep(ASK_SECONDS)
