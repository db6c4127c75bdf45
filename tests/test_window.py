"""The staleness bound, under hundreds of schedules: random durations and discards."""

import asyncio
import random

import pytest
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.window import Window, WindowState


def simulate(
    *, per_step: int, staleness: int, steps: int, discard: float, seed: int
) -> tuple[list[int], list[int], Window]:
    """(worst staleness of each step, tickets trained in order, the window) of one schedule.

    Each rollout takes a random, heavy-tailed number of turns of the event loop; the version that a
    ticket was admitted under is what its group was sampled with.
    """
    rng = random.Random(seed)
    window = Window(groups_per_step=per_step, max_staleness=staleness, budget=per_step * steps)
    version = 0
    sampled_under: dict[int, int] = {}
    alive = 0
    most_alive = 0

    async def roll_out(ticket: int) -> None:
        nonlocal alive
        for _ in range(int(rng.paretovariate(1.2))):
            await asyncio.sleep(0)
        if rng.random() < discard:
            alive -= 1
            await window.discard(ticket)
        else:
            await window.ready(ticket, group(ticket))

    async def admit() -> None:
        nonlocal alive, most_alive
        async with asyncio.TaskGroup() as tasks:
            while True:
                ticket = await window.admit()
                sampled_under[ticket] = version
                alive += 1
                most_alive = max(most_alive, alive)
                tasks.create_task(roll_out(ticket))

    async def train() -> tuple[list[int], list[int]]:
        nonlocal version, alive
        worst, trained = [], []
        admission = asyncio.create_task(admit())
        for _ in range(steps):
            groups = await window.take(per_step)
            tickets = [g.group.ticket for g in groups]
            worst.append(max(version - sampled_under[t] for t in tickets))
            trained += tickets
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            version += 1
            alive -= len(groups)
            await window.release(len(groups))
        admission.cancel()
        return worst, trained

    worst, trained = asyncio.run(asyncio.wait_for(train(), 30))
    assert most_alive <= window.capacity, "a slot leaked"
    return worst, trained, window


@settings(max_examples=600, deadline=None)
@given(
    per_step=st.integers(1, 6),
    staleness=st.integers(0, 4),
    steps=st.integers(1, 12),
    discard=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 10**6),
)
def test_no_group_is_older_than_the_bound_and_none_is_trained_twice(
    per_step: int, staleness: int, steps: int, discard: float, seed: int
):
    worst, trained, window = simulate(
        per_step=per_step, staleness=staleness, steps=steps, discard=discard, seed=seed
    )
    assert max(worst) <= staleness
    assert trained == sorted(set(trained)), "first in, first out, each once"
    assert len(trained) == per_step * steps
    admitted = set(range(max(trained) + 1))
    assert len(admitted - set(trained)) <= window.discarded


def test_the_bound_is_reached():
    worst, *_ = simulate(per_step=2, staleness=2, steps=20, discard=0.0, seed=1)
    assert max(worst) == 2


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
