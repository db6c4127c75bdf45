"""Window: the staleness bound, as slots.

A slot is charged when a prompt is admitted and refunded only after new weights have reached the
samplers, so the number of groups alive can never exceed `(max_staleness + 1) * groups_per_step`.
That is the whole schedule: 0 is synchronous, 1 is one-step-off, n is asynchronous.

Groups are taken first in, first out. That is unbiased (taking whatever is ready first starves long
answers), and it gives the bound: before a group's turn at most `capacity - 1` others are taken,
that is `max_staleness` whole steps, so it is trained at most `max_staleness` versions after its
oldest token.

Example, groups_per_step 2, max_staleness 1, hence 4 slots: tickets 0 1 2 3 are admitted under
version 0. `take(2)` gives 0 and 1; nothing is admitted while they train, since their slots stay
charged. After the publish of version 1, `release(2)` admits 4 and 5. Tickets 2 and 3, sampled under
version 0, are trained next: staleness 1, the bound.
"""

import asyncio
from dataclasses import dataclass

from rollout import ScoredGroup


@dataclass(frozen=True, slots=True)
class WindowState:
    """What a resumed run needs: tickets that entered and are not trained yet, and the next one."""

    pending: tuple[int, ...]
    next_ticket: int


class Window:
    """Tickets in flight. One event loop; no locks.

    `budget` is how many groups the run will train from here on: no more tickets than that enter,
    discarded ones not counted.
    """

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        budget: int,
        state: WindowState = WindowState((), 0),
    ) -> None:
        self.capacity = (max_staleness + 1) * groups_per_step
        self._budget = budget
        self._charged = 0
        self._again = list(state.pending)
        self._next = state.next_ticket
        self._live: dict[int, ScoredGroup | None] = {}
        self._changed = asyncio.Condition()
        self.discarded = 0

    async def admit(self) -> int:
        """A new ticket. Consumes a slot. Waits for a free one, for ever once the budget is spent.
        Unblocked by `release` and `discard`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._charged < self.capacity and self._budget > 0)
            self._charged += 1
            self._budget -= 1
            if self._again:
                ticket = self._again.pop(0)
            else:
                ticket, self._next = self._next, self._next + 1
            self._live[ticket] = None
            return ticket

    async def ready(self, ticket: int, group: ScoredGroup) -> None:
        """The group of this ticket may be taken."""
        async with self._changed:
            if self._live.get(ticket, group) is not None:
                raise RuntimeError(f"ticket {ticket} is not waiting for a group")
            self._live[ticket] = group
            self._changed.notify_all()

    async def discard(self, ticket: int) -> None:
        """Forget a ticket; its slot is free at once."""
        async with self._changed:
            del self._live[ticket]
            self._charged -= 1
            self._budget += 1
            self.discarded += 1
            self._changed.notify_all()

    async def take(self, count: int) -> list[ScoredGroup]:
        """The `count` oldest groups. Waits until they all are ready. Unblocked by `ready`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._oldest(count) is not None)
            groups = self._oldest(count)
            if groups is None:
                raise RuntimeError("the window woke up without its groups")
            for ticket in list(self._live)[:count]:
                del self._live[ticket]
            return groups

    def _oldest(self, count: int) -> list[ScoredGroup] | None:
        if len(self._live) < count:
            return None
        groups = [g for g in list(self._live.values())[:count] if g is not None]
        return groups if len(groups) == count else None

    async def release(self, count: int) -> None:
        """The policy that was trained on `count` taken groups is published: refund their slots."""
        async with self._changed:
            self._charged -= count
            self._changed.notify_all()

    def state(self) -> WindowState:
        return WindowState((*self._live, *self._again), self._next)

    @property
    def in_flight(self) -> int:
        """Tickets that wait for their group."""
        return sum(group is None for group in self._live.values())

    @property
    def num_ready(self) -> int:
        return len(self._live) - self.in_flight
