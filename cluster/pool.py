"""Calls to actors: every wait has a deadline, an owner and a name in its error."""

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from cluster.errors import Lost
from rollout.sampler import EngineDied
from rollout.schema import Damaged

Failure = RuntimeError | ValueError
Member = tuple[int, ActorHandle]
"""A place in a pool, and who has it."""
DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray raises when the process behind an actor is gone."""
GRACE_SECONDS = 5.0
"""When one rank of a collective fails, how long its death, or another's, may take to be known."""


def is_death(error: BaseException) -> bool:
    """Whether an actor, or the engine that it holds, is of no use any more."""
    return isinstance(error, DEATHS) or isinstance(getattr(error, "cause", None), EngineDied)


def explain(error: BaseException, who: str) -> Failure:
    """A Ray error as the plain error behind it, with the name of the actor that raised it."""
    if is_death(error):
        first = str(getattr(error, "cause", None) or error).strip().splitlines()[0]
        return Lost(who, first)
    if isinstance(error, RayTaskError):
        cause = error.cause
        kinds = (Damaged, ValueError, RuntimeError)
        kind = next((kind for kind in kinds if isinstance(cause, kind)), RuntimeError)
        told = isinstance(cause, (ValueError, RuntimeError, OSError))
        return kind(f"{who}: {cause if told else error}")
    return RuntimeError(f"{who}: {type(error).__name__}: {error}")


async def ask_all(members: Sequence[tuple[str, Any]], *, what: str, seconds: float) -> list[Any]:
    """The results of calls already made, `(name of the actor, object reference)` each, in order.

    The first failure wins: with collectives, the others only fail because of it, or hang. But a
    death is first whenever it is heard of: those whom it left in a collective often fail before.
    Raises Lost for it; else RuntimeError (ValueError when the actor raised one) naming the actor;
    on the deadline, naming all that have not answered.
    """
    if not members:
        return []
    tasks = {asyncio.ensure_future(answer(ref)): name for name, ref in members}
    done, waiting = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    try:
        failed = [(task, error) for task in done if (error := task.exception()) is not None]
        if failed and waiting and not any(is_death(error) for _, error in failed):
            late, waiting = await asyncio.wait(waiting, timeout=GRACE_SECONDS)
            failed += [(task, error) for task in late if (error := task.exception()) is not None]
        for task, error in sorted(failed, key=lambda each: not is_death(each[1])):
            raise explain(error, f"{tasks[task]}, {what}") from error
        if waiting:
            names = ", ".join(tasks[task] for task in waiting)
            raise RuntimeError(f"{what}: no answer within {seconds:.0f} s from {names}")
    finally:
        for task in waiting:
            task.cancel()
            task.add_done_callback(_heard)
    return [task.result() for task in tasks]


def _heard(task: asyncio.Future[Any]) -> None:
    """It may have failed in the very moment in which it was cancelled."""
    if not task.cancelled():
        task.exception()


async def answer(ref: Any) -> Any:
    return await ref


class Work:
    """The stretches of time in which an actor had calls under way."""

    def __init__(self) -> None:
        self._calls = 0
        self._since = 0.0
        self._done: list[tuple[float, float]] = []

    def begin(self) -> None:
        if not self._calls:
            self._since = time.monotonic()
        self._calls += 1

    def end(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._done.append((self._since, time.monotonic()))

    def take(self, now: float) -> list[tuple[float, float]]:
        """What was done until now; what goes on goes on from here."""
        done, self._done = self._done, []
        if self._calls:
            done.append((self._since, now))
            self._since = now
        return done


class Pool:
    """Actors that do the same thing. A call goes to the one with the least load under way: as many
    calls, where nobody says that one of them weighs more.

    A member that is lost gets no more calls. `lost(index, why)` is told of it, once, and may bring
    another in its place, then or later; without `lost` nobody comes. A call is made `tries` times
    in all, on whoever is there then.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[ActorHandle],
        *,
        seconds: float,
        lost: Callable[[int, str], None] | None = None,
        tries: int = 1,
    ) -> None:
        self.name = name
        self.lost = lost
        self._seconds = seconds
        self._tries = tries
        self.members: list[ActorHandle] = []
        self._gone: set[int] = set()
        self._busy: list[float] = []
        self._work: dict[ActorHandle, Work] = {}
        self._someone = asyncio.Event()
        self.adopt(members)

    def adopt(self, members: Sequence[ActorHandle]) -> None:
        self.members = list(members)
        self._gone = set()
        self._busy = [0.0] * len(members)
        self._work = {}
        self._idlest = [(0.0, index) for index in range(len(members))]
        self._mark()

    @property
    def live(self) -> list[Member]:
        """Those that answer calls."""
        return [each for each in enumerate(self.members) if each[0] not in self._gone]

    def place(self, index: int, actor: ActorHandle) -> Member:
        """A new member where one was lost, or behind the last. Calls go to it once it is `put` to
        work; `ask` reaches it before."""
        if index == len(self.members):
            self.members.append(actor)
            self._busy.append(0.0)
        self._gone.add(index)
        self.members[index] = actor
        self._busy[index] = 0.0
        return index, actor

    def put(self, member: Member) -> None:
        index, _ = member
        self._gone.discard(index)
        heapq.heappush(self._idlest, (0.0, index))
        self._mark()

    def drop(self, member: Member, why: str) -> None:
        """This member is lost. Nothing when that is known, or another has its place."""
        index, actor = member
        if self.members[index] is not actor or index in self._gone:
            return
        self._gone.add(index)
        self._mark()
        if self.lost is not None:
            self.lost(index, why)

    def _mark(self) -> None:
        self._someone.set() if self.live else self._someone.clear()

    async def someone(self) -> None:
        """Until there is a member that answers. Raises RuntimeError on the deadline."""
        try:
            async with asyncio.timeout(self._seconds if self.lost is not None else 0):
                await self._someone.wait()
        except TimeoutError:
            raise RuntimeError(f"{self.name}: none of {len(self.members)} is left") from None

    async def call(self, method: str, *args: Any, load: float = 1.0) -> Any:
        """The result of one call on the least busy member. Raises Lost when it died meanwhile."""
        for left in reversed(range(self._tries)):
            if not self._someone.is_set():
                await self.someone()
            index = self._least_busy()
            member = index, self.members[index]
            self._count(member, load)
            work = self._work_of(member[1])
            work.begin()
            try:
                return await self.ask(member, method, *args)
            except Lost:
                if not left:
                    raise
            finally:
                work.end()
                self._count(member, -load)
        raise RuntimeError(f"{self.name}, {method}: nobody was asked")

    def _least_busy(self) -> int:
        """A heap, so that the thousandth member costs no more than the tenth. What it says of a
        member is out of date once that member's count has changed, or it is gone."""
        while True:
            busy, index = self._idlest[0]
            if busy == self._busy[index] and index not in self._gone:
                return index
            heapq.heappop(self._idlest)

    def _count(self, member: Member, change: float) -> None:
        index, actor = member
        if self.members[index] is not actor:
            return  # it was begun on one that has been replaced
        self._busy[index] += change
        if len(self._idlest) > 4 * len(self._busy) + 64:  # what is out of date goes
            self._idlest = [(self._busy[each], each) for each, _ in self.live]
            heapq.heapify(self._idlest)
        heapq.heappush(self._idlest, (self._busy[index], index))

    async def ask(self, member: Member, method: str, *args: Any) -> Any:
        """The result of a call on this member. Raises Lost when it is dead, RuntimeError when it
        does not answer in time."""
        index, actor = member
        who = f"{self.name}/{index}, {method}"
        try:
            async with asyncio.timeout(self._seconds):
                return await getattr(actor, method).remote(*args)
        except TimeoutError:
            raise RuntimeError(f"{who}: no answer within {self._seconds:g} s") from None
        except RayError as error:
            failure = explain(error, who)
            if isinstance(failure, Lost):
                self.drop(member, str(failure))
            raise failure from error

    def submit(self, method: str, *args: Any) -> list[tuple[str, Any]]:
        """Call every member, for `ask_all`."""
        return [
            (f"{self.name}/{index}", getattr(actor, method).remote(*args))
            for index, actor in self.live
        ]

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Call every member at once; the results in order."""
        return await ask_all(self.submit(method, *args), what=method, seconds=self._seconds)

    def worked(self, now: float) -> dict[int, list[tuple[float, float]]]:
        """Since the last call: when each member had something to do, by the monotonic clock."""
        done = {}
        for index, actor in self.live:
            done[index] = self._work_of(actor).take(now)
        self._work = {actor: self._work[actor] for _, actor in self.live}
        return done

    def _work_of(self, actor: ActorHandle) -> Work:
        work = self._work.get(actor)
        if work is None:
            work = self._work[actor] = Work()
        return work

    def kill(self) -> None:
        for member in self.members:
            ray.kill(member)
