"""SIGINT and SIGTERM, from the first second of a run to its last: each ends it, by Stopped."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from cluster.errors import Stopped, first_failure


@contextlib.contextmanager
def _handler(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Of SIGINT and SIGTERM. Only the main thread has any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)


def signals_raise() -> contextlib.AbstractContextManager[None]:
    """SIGINT and SIGTERM raise Stopped, where no loop of asyncio heeds them."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    return _handler(stop)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """They do so behind what must not be left half done."""
    received: list[int] = []
    with _handler(lambda number, _: received.append(number)):
        yield
    if received:
        raise Stopped(received[0])


async def guarded(body_of_run: Coroutine[Any, Any, Any]) -> Any:
    """The run, until it ends or a signal ends it."""
    event_loop = asyncio.get_running_loop()
    body = asyncio.ensure_future(body_of_run)
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        body.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        event_loop.add_signal_handler(number, stop, number)
    try:
        return await body
    except asyncio.CancelledError:
        if received:
            raise Stopped(received[0]) from None
        raise
    except BaseExceptionGroup as group:
        first = first_failure(group)
        raise first from group
