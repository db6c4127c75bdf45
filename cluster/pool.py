"""Calls to actors: every wait has a deadline, an owner and a name in its error."""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

Failure = RuntimeError | ValueError
DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray raises when the process behind an actor is gone."""


def explain(error: BaseException, who: str) -> Failure:
    """A Ray error as the plain error behind it, with the name of the actor that raised it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind = ValueError if isinstance(cause, ValueError) else RuntimeError
        return kind(f"{who}: {cause if isinstance(cause, (ValueError, RuntimeError)) else error}")
    if isinstance(error, ActorDiedError):
        return RuntimeError(f"{who} died: {error}")
    return RuntimeError(f"{who}: {type(error).__name__}: {error}")


async def ask_all(members: Sequence[tuple[str, Any]], *, what: str, seconds: float) -> list[Any]:
    """The results of calls already made, `(name of the actor, object reference)` each, in order.

    The first failure wins: with collectives, the others only fail because of it, or hang. Raises
    RuntimeError (ValueError when the actor raised one) naming the actor; on the deadline, naming
    all that have not answered.
    """
    tasks = {asyncio.ensure_future(_answer(ref)): name for name, ref in members}
    done, waiting = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    try:
        for task in done:
            error = task.exception()
            if error is not None:
                raise explain(error, f"{tasks[task]}, {what}") from error
        if waiting:
            names = ", ".join(tasks[task] for task in waiting)
            raise RuntimeError(f"{what}: no answer within {seconds:.0f} s from {names}")
    finally:
        for task in waiting:
            task.cancel()
    return [task.result() for task in tasks]


async def _answer(ref: Any) -> Any:
    return await ref


class Pool:
    """Actors that do the same thing. A call goes to the one with the least load under way: as many
    calls, where nobody says that one of them weighs more.

    With `restart`, a member that dies is replaced and its call is made once more; without, its
    death is the caller's error.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[ActorHandle],
        *,
        seconds: float,
        restart: Callable[[int], ActorHandle] | None = None,
    ) -> None:
        self.name = name
        self._seconds = seconds
        self._restart = restart
        self.restarts = 0
        self.members: list[ActorHandle] = []
        self._busy: list[float] = []
        self.adopt(members)

    def adopt(self, members: Sequence[ActorHandle]) -> None:
        self.members = list(members)
        self._busy = [0.0] * len(members)
        self._idlest = [(0.0, index) for index in range(len(members))]

    async def call(self, method: str, *args: Any, load: float = 1.0) -> Any:
        """The result of one call on the least busy member."""
        try:
            return await self._call_once(method, *args, load=load)
        except RayError as error:
            if self._restart is None or not isinstance(error, DEATHS):
                raise explain(error, f"{self.name}, {method}") from error
        try:
            return await self._call_once(method, *args, load=load)
        except RayError as error:
            raise explain(error, f"{self.name}, {method}, second try") from error

    async def _call_once(self, method: str, *args: Any, load: float) -> Any:
        index = self._least_busy()
        self._count(index, load)
        try:
            return await self._under_way(index, method, *args)
        finally:
            self._count(index, -load)

    def _least_busy(self) -> int:
        """A heap, so that the thousandth member costs no more than the tenth. What it says of a
        member is out of date once that member's count has changed."""
        while self._idlest[0][0] != self._busy[self._idlest[0][1]]:
            heapq.heappop(self._idlest)
        return self._idlest[0][1]

    def _count(self, index: int, change: float) -> None:
        self._busy[index] += change
        if len(self._idlest) > 4 * len(self._busy) + 64:  # what is out of date goes
            self._idlest = [(busy, member) for member, busy in enumerate(self._busy)]
            heapq.heapify(self._idlest)
        heapq.heappush(self._idlest, (self._busy[index], index))

    async def _under_way(self, index: int, method: str, *args: Any) -> Any:
        member = self.members[index]
        try:
            async with asyncio.timeout(self._seconds):
                return await getattr(member, method).remote(*args)
        except TimeoutError:
            raise RuntimeError(
                f"{self.name}/{index}, {method}: no answer within {self._seconds:g} s"
            ) from None
        except RayTaskError as error:
            raise explain(error, f"{self.name}/{index}, {method}") from error
        except DEATHS:
            if self._restart is not None and self.members[index] is member:
                self.members[index] = self._restart(index)
                self.restarts += 1
            raise

    def submit(self, method: str, *args: Any) -> list[tuple[str, Any]]:
        """Call every member, for `ask_all`."""
        return [
            (f"{self.name}/{index}", getattr(member, method).remote(*args))
            for index, member in enumerate(self.members)
        ]

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Call every member at once; the results in order."""
        return await ask_all(self.submit(method, *args), what=method, seconds=self._seconds)

    def kill(self) -> None:
        for member in self.members:
            ray.kill(member)
