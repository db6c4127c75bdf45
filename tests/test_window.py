"""The staleness bound, under thousands of schedules: random durations, discards, updates that
abort, and runs that are killed and resumed."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ledger import conserved
from cluster.window import MOST_PASSED, Window, WindowState


@dataclass
class Schedule:
    """A run with no cluster: the window and the order of things in `cluster/loop.py`, with rollouts
    that take a random, heavy-tailed number of turns of the event loop, a token each."""

    per_step: int
    staleness: int
    steps: int
    discard: float
    poison: float
    """Share of those that leave because they kill samplers"""
    crash: float
    in_flight: str
    spare: int
    seed: int
    version: int = 0
    worst: dict[int, int] = field(default_factory=dict)
    """Of each step: how old its oldest token was."""
    trained: dict[int, list[int]] = field(default_factory=dict)
    discarded: set[int] = field(default_factory=set)
    begun: Counter[int] = field(default_factory=Counter)
    went_round: int = 0

    def run(self) -> None:
        rng, state, step = random.Random(self.seed), WindowState((), 0), 0
        while step < self.steps:
            step, state = asyncio.run(asyncio.wait_for(self._live(rng, state, step), 30))
        self.left = state

    async def _live(
        self, rng: random.Random, state: WindowState, step: int
    ) -> tuple[int, WindowState]:
        """Until the end, or until it is killed: then the last checkpoint."""
        window = Window(
            groups_per_step=self.per_step,
            max_staleness=self.staleness,
            budget=self.per_step * (self.steps - step),
            spare=self.spare,
            version=step,
            state=state,
        )
        self.version, saved = step, (step, state)
        self.trained = {s: t for s, t in self.trained.items() if s <= step}
        self.discarded -= {
            t for t in self.discarded if t in state.pending or t >= state.next_ticket
        }
        sampling: set[int] = set()
        oldest: dict[int, int] = {}

        async def sample(ticket: int) -> list[int]:
            while True:
                self.begun[ticket] += 1
                versions = [self.version]
                for _ in range(int(rng.paretovariate(1.2))):
                    await asyncio.sleep(0)
                    if self.in_flight == "abort" and self.version != versions[0]:
                        break
                    versions.append(self.version)
                else:
                    return versions

        async def roll_out(ticket: int) -> None:
            sampling.add(ticket)
            versions = await sample(ticket)
            sampling.discard(ticket)
            if self.in_flight != "keep":
                assert len(set(versions)) == 1, "an update went through a completion"
            oldest[ticket] = min(versions)
            for _ in range(rng.randrange(3)):  # its verifiers
                await asyncio.sleep(0)
            if rng.random() < self.discard:
                self.discarded.add(ticket)
                await (window.drop if rng.random() < self.poison else window.discard)(ticket)
            else:
                await window.ready(ticket, group(ticket, version=min(versions)))

        async def admit() -> None:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    ticket = await window.admit()
                    alive = len(window._live)
                    assert alive <= window.capacity, "a slot leaked"
                    tasks.create_task(roll_out(ticket))

        async def publish(count: int) -> None:
            for _ in range(rng.randrange(6)):  # weights are staged; the next update may be done
                await asyncio.sleep(0)
            while self.in_flight == "wait" and sampling:
                await asyncio.sleep(0)
            self.version += 1
            for _ in range(rng.randrange(4)):  # samplers go on
                await asyncio.sleep(0)
            await window.release(count)

        admission = asyncio.create_task(admit())
        publishing = asyncio.create_task(asyncio.sleep(0))
        try:
            while step < self.steps:
                taking = asyncio.create_task(window.take(self.per_step))
                await asyncio.wait([taking, admission], return_when=asyncio.FIRST_COMPLETED)
                if admission.done():
                    await admission  # its own error, not a deadline
                tickets = [g.group.ticket for g in await taking]
                self.worst[step] = max(step - oldest[t] for t in tickets)
                for _ in range(rng.randrange(4)):  # the update
                    await asyncio.sleep(0)
                step += 1
                self.trained[step] = tickets
                await publishing
                publishing = asyncio.create_task(publish(len(tickets)))
                if not self.staleness:
                    await publishing
                saved = (step, window.state()) if rng.random() < 0.5 else saved
                if rng.random() < self.crash:
                    return saved
            return step, window.state()
        finally:
            self.went_round += window.went_round
            admission.cancel()
            publishing.cancel()
            await asyncio.gather(admission, publishing, return_exceptions=True)


SCHEDULES = {
    "per_step": st.integers(1, 6),
    "staleness": st.integers(0, 4),
    "steps": st.integers(1, 12),
    "discard": st.sampled_from([0.0, 0.1, 0.4]),
    "poison": st.sampled_from([0.0, 0.5]),
    "crash": st.sampled_from([0.0, 0.0, 0.1, 0.3]),
    "in_flight": st.sampled_from(["keep", "wait", "abort"]),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=5000, deadline=None)
@given(**SCHEDULES, spare=st.integers(0, 4))
def test_no_group_is_older_than_the_bound_and_none_is_lost_or_trained_twice(**drawn):
    if drawn["spare"]:  # cluster/config.py asks for the same
        drawn |= {"staleness": 0, "in_flight": "abort"}
    run = Schedule(**drawn)
    run.run()
    assert max(run.worst.values()) <= run.staleness
    trained = [ticket for step in sorted(run.trained) for ticket in run.trained[step]]
    assert len(trained) == len(set(trained)) == run.per_step * run.steps
    if not run.spare:
        assert trained == sorted(trained), "first in, first out"
    fates = [*trained, *run.discarded, *run.left.pending]
    assert sorted(fates) == list(range(run.left.next_ticket)), "each ticket has one fate"
    assert run.left.discarded + run.left.dropped == len(run.discarded)
    assert conserved(len(trained), run.left)


def undisturbed(**changed) -> Schedule:
    plain = {
        "discard": 0.0,
        "poison": 0.0,
        "crash": 0.0,
        "in_flight": "keep",
        "spare": 0,
        "seed": 1,
    }
    run = Schedule(**{**plain, **changed})
    run.run()
    return run


def test_the_bound_is_reached():
    assert max(undisturbed(per_step=2, staleness=2, steps=20).worst.values()) == 2


def test_updates_abort_and_spare_groups_go_round():
    """What the property is about does happen."""
    aborted = undisturbed(per_step=3, staleness=3, steps=30, in_flight="abort")
    assert max(aborted.begun.values()) > 1
    spare = undisturbed(per_step=4, staleness=0, steps=60, in_flight="abort", spare=4)
    assert max(spare.begun.values()) > 1
    step_of = {t: step for step, tickets in spare.trained.items() for t in tickets}
    late = max(step_of[t] - 1 - t // 4 for t in step_of)
    assert late > 0, "nothing was ever passed over"
    waits = [spare.begun[t] for t in step_of]
    assert max(waits) <= MOST_PASSED + 2, "a long answer starves"


def test_synchronous_training_admits_nothing_before_the_release():
    async def scenario() -> None:
        window = Window(groups_per_step=2, max_staleness=0, budget=100)
        assert [await window.admit() for _ in range(2)] == [0, 1]
        await window.ready(1, group(1))
        await window.ready(0, group(0))
        assert [g.group.ticket for g in await window.take(2)] == [0, 1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(window.admit(), 0.05)
        await window.release(2)
        assert await window.admit() == 2

    asyncio.run(scenario())


def test_a_budget_ends_admission_and_a_discard_gives_it_back():
    async def scenario() -> None:
        window = Window(groups_per_step=4, max_staleness=0, budget=2)
        assert [await window.admit() for _ in range(2)] == [0, 1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(window.admit(), 0.05)
        await window.discard(0)
        assert await window.admit() == 2

    asyncio.run(scenario())


def test_a_resumed_window_issues_the_untrained_tickets_first():
    async def scenario() -> None:
        window = Window(groups_per_step=2, max_staleness=1, budget=100)
        for _ in range(4):
            await window.admit()
        for ticket in (0, 1, 2):
            await window.ready(ticket, group(ticket))
        await window.take(2)
        state = window.state()
        assert state == WindowState((2, 3), 4)
        again = Window(groups_per_step=2, max_staleness=1, budget=100, state=state)
        assert [await again.admit() for _ in range(4)] == [2, 3, 4, 5]

    asyncio.run(scenario())


def test_a_second_group_for_one_ticket_is_refused():
    async def scenario() -> None:
        window = Window(groups_per_step=1, max_staleness=0, budget=1)
        ticket = await window.admit()
        await window.ready(ticket, group(0))
        with pytest.raises(RuntimeError, match="ticket 0 is not waiting"):
            await window.ready(ticket, group(0))

    asyncio.run(scenario())


def test_a_group_that_comes_too_late_for_its_step_goes_round_with_its_ticket():
    async def scenario() -> None:
        window = Window(groups_per_step=1, max_staleness=0, budget=10, spare=1)
        assert [await window.admit() for _ in range(2)] == [0, 1]
        await window.ready(1, group(1))
        assert [g.group.ticket for g in await window.take(1)] == [1]
        await window.ready(0, group(0))  # during the update
        await window.release(1)
        assert window.went_round == 1 and window.state() == WindowState((0,), 2)
        assert await window.admit() == 0, "the same prompt again, first"

    asyncio.run(scenario())
