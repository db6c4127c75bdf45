"""Prompts that kill samplers, on samplers of virtual time that die when they are asked for them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from builders import prompt
from ray.exceptions import ActorDiedError

from cluster.errors import Lost
from cluster.planner.virtual import in_virtual_time
from cluster.poison import SUSPECT_SECONDS, Poisoned, Trials, put_aside
from cluster.pool import Pool


class Engine:
    def __init__(self, poison: dict[str, float], seconds: float) -> None:
        self._poison, self._seconds = poison, seconds
        """Of each prompt that kills: after how many seconds"""
        self._dead = asyncio.Event()
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, given: Any) -> str:
        kills = self._poison.get(given.id)
        try:
            async with asyncio.timeout(self._seconds if kills is None else kills):
                await self._dead.wait()
        except TimeoutError:
            if kills is None:
                return given.id
            self._dead.set()
        raise ActorDiedError

    def kill(self) -> None:
        self._dead.set()


class Fleet:
    """Two samplers, each replaced ten seconds after it died."""

    def __init__(self, poison: dict[str, float], seconds: float) -> None:
        self._make = lambda: Engine(poison, seconds)
        self.deaths = 0
        engines: Any = [self._make(), self._make()]
        self.pool = Pool("sampler", engines, seconds=1e6, lost=self._lost)
        self.trials = Trials(self.pool.someone)
        self._tasks: list[asyncio.Task] = []

    def _lost(self, index: int, why: str) -> None:
        self.deaths += 1
        self._tasks.append(asyncio.create_task(self._replace(index)))

    async def _replace(self, index: int) -> None:
        await asyncio.sleep(10)
        newcomer: Any = self._make()
        self.pool.put(self.pool.place(index, newcomer))

    async def ask_all(self, count: int) -> list[Any]:
        prompts = [prompt(number) for number in range(count)]
        asked = [self.trials.ask(p, lambda p=p: self.pool.call("generate", p)) for p in prompts]
        return await asyncio.gather(*asked, return_exceptions=True)


def asked(
    poison: dict[str, float], *, seconds: float, kills: tuple[float, ...] = ()
) -> tuple[list[Any], int]:
    """What became of twelve prompts, and how many samplers died."""

    async def work() -> tuple[list[Any], int]:
        fleet = Fleet(poison, seconds)

        async def kill() -> None:
            for after in kills:
                await asyncio.sleep(after)
                fleet.pool.members[0].kill()

        killing = asyncio.create_task(kill())
        found = await fleet.ask_all(12)
        killing.cancel()
        return found, fleet.deaths

    return in_virtual_time(work)


NAMES = [prompt(number).id for number in range(12)]


@pytest.mark.parametrize("after", [0.0, 1.0, SUSPECT_SECONDS - 0.5])
def test_a_prompt_that_kills_samplers_is_found_by_its_second_and_nobody_else_suffers(after: float):
    found, deaths = asked({NAMES[5]: after}, seconds=3.0 if after < 3 else 30.0)
    assert isinstance(found[5], Poisoned) and NAMES[5] in str(found[5])
    assert found[:5] + found[6:] == NAMES[:5] + NAMES[6:]
    assert deaths == 2


def test_what_kills_late_costs_a_third():
    found, deaths = asked({NAMES[5]: 20.0}, seconds=60.0)
    assert isinstance(found[5], Poisoned)
    assert found[:5] + found[6:] == NAMES[:5] + NAMES[6:]
    assert deaths == 3


def test_two_of_them_cost_two_each_at_most():
    found, deaths = asked({NAMES[1]: 1.0, NAMES[8]: 2.0}, seconds=30.0)
    assert [i for i, each in enumerate(found) if isinstance(each, Poisoned)] == [1, 8]
    assert sorted(each for each in found if isinstance(each, str)) == sorted(
        set(NAMES) - {NAMES[1], NAMES[8]}
    )
    assert deaths <= 4


def test_samplers_that_die_of_something_else_make_no_prompt_a_suspect_for_long():
    found, deaths = asked({}, seconds=60.0, kills=(5.0, 45.0))
    assert found == NAMES and deaths == 2


def test_samplers_that_die_together_make_no_prompt_a_poison():
    async def work() -> tuple[list[Any], int]:
        fleet = Fleet({}, seconds=60.0)

        async def kill() -> None:
            for pause in (40, 75):  # all of them, one a second after the other, twice
                await asyncio.sleep(pause)
                for each in list(fleet.pool.members):
                    each.kill()
                    await asyncio.sleep(1.0)

        killing = asyncio.create_task(kill())
        found = await fleet.ask_all(12)
        killing.cancel()
        return found, fleet.deaths

    found, deaths = in_virtual_time(work)
    assert found == NAMES and deaths == 4


def test_what_is_put_aside_can_be_read(tmp_path):
    for number in (3, 7):
        put_aside(tmp_path, number, prompt(number), "sampler/1 died")
    with pa.ipc.open_file(tmp_path / "poison.arrow") as file:
        rows = file.read_all().to_pylist()
    assert [row["ticket"] for row in rows] == [3, 7]
    assert rows[1]["prompt_id"] == prompt(7).id and rows[1]["why"] == "sampler/1 died"
    assert rows[1]["prompt_ids"] == prompt(7).token_ids.tolist()


def test_lost_is_what_trials_are_about():
    async def broken() -> None:
        raise Lost("sampler/0, generate", "it died")

    async def ready() -> None: ...

    with pytest.raises(Poisoned, match="sampler/0, generate: it died"):
        asyncio.run(Trials(ready).ask(prompt(1), broken))
