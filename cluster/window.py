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

Two ways to leave a group out, and neither loses a prompt unseen. `discard` is for a group that
nothing can be learned from: its slot is free at once, and another prompt has its place in the step.
With `spare` slots a synchronous step starts more groups than it trains, and trains those that are
ready first; the others go round again, sampled anew under the new weights.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from rollout import ScoredGroup

MOST_PASSED = 3
"""How many steps may go by without a group before one waits for it: or no long answer would ever be
trained. Counted anew when a run is resumed."""


@dataclass(frozen=True, slots=True)
class WindowState:
    """What a resumed run needs: tickets that entered and are not trained yet, the next one, and how
    many left without being trained."""

    pending: tuple[int, ...]
    next_ticket: int
    discarded: int = 0
    """Nothing could be learned from them"""
    dropped: int = 0
    """They killed samplers"""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "WindowState":
        """From JSON."""
        return cls(**{**fields, "pending": tuple(fields["pending"])})


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
        spare: int = 0,
        version: int = 0,
        state: WindowState = WindowState((), 0),
    ) -> None:
        self.capacity = (max_staleness + 1) * groups_per_step + spare
        self.version = version
        self._max_staleness = max_staleness
        self._spare = spare
        self._budget = budget
        self._charged = 0
        self._again = list(state.pending)
        self._next = state.next_ticket
        self._live: dict[int, ScoredGroup | None] = {}
        self._order: list[int] = []
        """The live tickets, oldest first; of those, the first `_head` are ready."""
        self._head = 0
        self._passed: dict[int, int] = {}
        self._changed = asyncio.Condition()
        self.discarded = state.discarded
        self.dropped = state.dropped
        self.discarded_in_a_row = 0
        self.went_round = 0

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
            self._order.append(ticket)
            return ticket

    async def ready(self, ticket: int, group: ScoredGroup) -> None:
        """The group of this ticket may be taken, or goes round again if it came too late for the
        step that it was begun for."""
        async with self._changed:
            if self._live.get(ticket, group) is not None:
                raise RuntimeError(f"ticket {ticket} is not waiting for a group")
            self._live[ticket] = group
            self.discarded_in_a_row = 0
            self._send_round()
            if self._advance():  # else nothing that anybody waits for has changed
                self._changed.notify_all()

    async def discard(self, ticket: int) -> None:
        """Forget a ticket; its slot is free at once."""
        async with self._changed:
            self._free(ticket)
            self._advance()
            self.discarded += 1
            self.discarded_in_a_row += 1
            self._changed.notify_all()

    async def drop(self, ticket: int) -> None:
        """The same for a prompt that cannot be sampled."""
        async with self._changed:
            self._free(ticket)
            self._advance()
            self.dropped += 1
            self._changed.notify_all()

    async def take(self, count: int) -> list[ScoredGroup]:
        """The `count` oldest groups; with spare slots, the oldest that are ready. Waits until there
        are as many. Unblocked by `ready`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._choose(count) is not None)
            tickets = self._choose(count)
            if tickets is None:
                raise RuntimeError("the window woke up without its groups")
            if self._spare:
                self._order = [ticket for ticket in self._order if ticket not in tickets]
            else:
                del self._order[:count]
                self._head -= count
            groups = [self._live.pop(ticket) for ticket in tickets]
            for ticket in tickets:
                self._passed.pop(ticket, None)
            for ticket in self._live if self._spare else ():
                self._passed[ticket] = self._passed.get(ticket, 0) + 1
            return [group for group in groups if group is not None]

    def _advance(self) -> bool:
        """Whether more of the oldest groups are ready than before. Each is looked at once: a window
        of thousands must not be searched at every group. With spare slots, which are few, any ready
        group counts."""
        if self._spare:
            return True
        before = self._head
        while self._head < len(self._order) and self._live[self._order[self._head]]:
            self._head += 1
        return self._head > before

    def _choose(self, count: int) -> list[int] | None:
        if not self._spare:
            return self._order[:count] if self._head >= count else None
        order = sorted(self._live)
        overdue = [t for t in order if self._passed.get(t, 0) >= MOST_PASSED]
        ready = [t for t in order if self._live[t] is not None and t not in overdue]
        chosen = sorted([*overdue, *ready][:count])
        whole = len(chosen) == count and all(self._live[t] is not None for t in chosen)
        return chosen if whole else None

    async def release(self, count: int) -> None:
        """The policy that was trained on `count` taken groups is published: refund their slots."""
        async with self._changed:
            self.version += 1
            self._charged -= count
            self._send_round()
            self._changed.notify_all()

    def _send_round(self) -> None:
        """Groups that only spare slots can make too old; without them it is a bug of this file, and
        the learner's last look says so."""
        if not self._spare:
            return
        oldest = self.version - self._max_staleness
        for ticket, group in list(self._live.items()):
            if group is not None and group.group.oldest_version < oldest:
                self._free(ticket)
                self._again = sorted([*self._again, ticket])
                self.went_round += 1

    def _free(self, ticket: int) -> None:
        del self._live[ticket]
        self._order.remove(ticket)
        self._charged -= 1
        self._budget += 1

    def state(self) -> WindowState:
        pending = (*self._live, *self._again)
        return WindowState(pending, self._next, self.discarded, self.dropped)

    @property
    def in_flight(self) -> int:
        """Tickets that wait for their group."""
        return sum(group is None for group in self._live.values())

    @property
    def num_ready(self) -> int:
        return len(self._live) - self.in_flight
