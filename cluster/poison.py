"""Prompts that kill samplers: found by their second, put aside, never trained.

When a sampler dies, any of the groups that it was sampling may be the reason. They are begun
again, one after another: the next when the one before has ended, or has been under way for
`SUSPECT_SECONDS`. If a sampler dies under the one that is on trial, that was its second, and it
goes to `poison.arrow`; whatever else that sampler had goes on trial in its turn. One that was
acquitted before its sampler died is tried again to its end: what kills late costs a third.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cluster.errors import Lost
from rollout import Prompt
from rollout.schema import write_table

SUSPECT_SECONDS = 5.0
SETTLE_SECONDS = 2.0
"""Samplers that die together, with their node, are heard of one after another. A trial begins when
no other death was heard of for so long: or it would be held on one of the dead."""
T = TypeVar("T")


class Poisoned(RuntimeError):
    """Two samplers died while they answered this prompt."""


class Trials:
    """`ready()` waits until there is a sampler to try a suspect on."""

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        self._ready = ready
        self._one = asyncio.Lock()
        self._heard = 0.0
        """When the last death was"""

    async def ask(self, prompt: Prompt, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, made again where its sampler died. Raises Poisoned."""
        try:
            return await call()
        except Lost:
            seconds: float | None = SUSPECT_SECONDS
            self._hear()
        while True:
            async with self._one:
                await self._settled()
                trial = asyncio.ensure_future(call())
                try:
                    await asyncio.wait([trial], timeout=seconds)
                    if trial.done():
                        return trial.result()
                except Lost as lost:
                    raise Poisoned(f"prompt {prompt.id}: {lost}") from lost
                except asyncio.CancelledError:
                    trial.cancel()
                    raise
            try:
                return await trial  # others may follow
            except Lost:
                seconds = None
                self._hear()

    def _hear(self) -> None:
        self._heard = asyncio.get_running_loop().time()

    async def _settled(self) -> None:
        """There is a sampler, and none died just now."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._ready()
            wait = self._heard + SETTLE_SECONDS - clock()
            if wait <= 0:
                return
            await asyncio.sleep(wait)


POISON = pa.schema(
    [
        ("ticket", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("why", pa.string()),
        ("time", pa.float64()),
    ]
)


def put_aside(folder: Path, ticket: int, prompt: Prompt, why: str) -> None:
    """One row more in `poison.arrow`."""
    path = folder / "poison.arrow"
    row: dict[str, Any] = {
        "ticket": ticket,
        "prompt_id": prompt.id,
        "prompt_ids": prompt.token_ids.tolist(),
        "why": why,
        "time": time.time(),
    }
    table = pa.Table.from_pylist([row], schema=POISON)
    if path.exists():
        with pa.ipc.open_file(path) as before:
            table = pa.concat_tables([before.read_all(), table])
    write_table(table, path)
