"""What a publish waits for, and what waits for it: a `Publisher` between a learner and samplers
that answer when the test lets them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import Lost
from cluster.publish import Publisher

DIGEST = "d" * 64


class World:
    """Members of both pools, which write down what they are asked for."""

    def __init__(
        self, *, staleness: int, backend: str = "shm", sampled: float = -1.0, samplers: int = 1
    ) -> None:
        self.said: list[str] = []
        self.exchange = asyncio.Event()
        self.sampled = sampled
        self.dead: set[tuple[int, str]] = set()
        """Samplers that die when they are asked for this."""
        self.serves = DIGEST
        schedule = SimpleNamespace(max_staleness=staleness, in_flight="keep")
        device = SimpleNamespace(weight_backend=backend, canary_bound=1e-3)
        pools = (
            SimpleNamespace(all=self._learners),
            SimpleNamespace(
                ask=self._sampler, live=[(index, "actor") for index in range(samplers)]
            ),
        )
        config: Any = SimpleNamespace(schedule=schedule)
        self.publisher = Publisher(config, device, *pools, [1, 2])  # type: ignore[arg-type]

    async def _learners(self, name: str, *given: Any) -> list[Any]:
        self.said.append(f"learner {name}")
        if name == "send_weights":
            await self.exchange.wait()
        return {"stage_weights": [(DIGEST, 1.0), ("", 1.0)], "score": [[-1.0]]}.get(name, [None])

    async def _sampler(self, member: tuple[int, str], name: str, *given: Any) -> Any:
        index, _ = member
        self.said.append(f"sampler {name}" + f" {index}" * (index > 0))
        if name == "switch":
            await self.exchange.wait()
            self.version = given[0]
        if (index, name) in self.dead:
            raise Lost(f"sampler/{index}, {name}", "it died")
        answers = {"switch": (1, self.serves, 0.01), "acknowledged": (1, DIGEST)}
        return {**answers, "score": [self.sampled]}.get(name)

    async def publish(self, version: int, background: asyncio.TaskGroup) -> dict[str, float]:
        return await self.publisher.publish(version, self._release, background)

    async def _release(self) -> None:
        self.said.append("release")


STAGED = [
    "learner stage_weights", "learner score", "sampler staged", "sampler switch",
    "release", "sampler score",
]  # fmt: skip
NATIVE = [
    "learner stage_weights", "learner score", "sampler pause", "learner send_weights",
    "sampler acknowledged", "sampler resume", "release", "sampler score",
]  # fmt: skip


def test_the_learner_goes_on_while_samplers_exchange_their_weights():
    async def scenario() -> World:
        world = World(staleness=1)
        async with asyncio.TaskGroup() as background:
            await asyncio.wait_for(world.publish(1, background), 5)
            await asyncio.sleep(0.01)
            assert world.said == STAGED[:4], "the exchange did not begin"
            after = asyncio.create_task(world.publish(2, background))
            await asyncio.sleep(0.01)
            assert world.said == STAGED[:4], "a publish overtook the one before"
            after.cancel()
            world.exchange.set()
            await world.publisher.ended()
        return world

    assert asyncio.run(scenario()).said == STAGED


@pytest.mark.parametrize(
    ("staleness", "backend", "order"), [(0, "shm", STAGED), (3, "nccl", NATIVE)]
)
def test_the_learner_waits_where_nothing_can_be_trained_or_it_takes_part(
    staleness: int, backend: str, order: list[str]
):
    async def scenario() -> None:
        world = World(staleness=staleness, backend=backend)
        async with asyncio.TaskGroup() as background:
            publishing = asyncio.create_task(world.publish(1, background))
            await asyncio.sleep(0.01)
            assert not publishing.done()
            world.exchange.set()
            found = await asyncio.wait_for(publishing, 5)
        assert world.said == order
        assert found["policy/canary_gap"] == 0.0, "its own metrics, not those of the one before"

    asyncio.run(scenario())


def test_weights_that_are_wrong_end_the_run_from_the_background():
    world = World(staleness=2, sampled=-1.5)

    async def scenario() -> None:
        world.exchange.set()
        async with asyncio.TaskGroup() as background:
            await world.publish(1, background)
            await world.publish(2, background)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(scenario())
    assert world.said == STAGED, "the next publish went on"
    assert "learner and samplers disagree by 0.5" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("asked", ["staged", "switch", "score"])
def test_a_sampler_that_dies_in_a_publish_is_left_out_and_the_others_serve_the_version(asked: str):
    async def scenario() -> World:
        world = World(staleness=0, samplers=3)
        world.dead = {(1, asked)}
        world.exchange.set()
        async with asyncio.TaskGroup() as background:
            await asyncio.wait_for(world.publish(1, background), 5)
        return world

    said = asyncio.run(scenario()).said
    assert said.count("release") == 1 and {"sampler score", "sampler score 2"} <= set(said)


def test_a_newcomer_is_given_the_weights_alone_and_its_death_is_heard_of():
    async def scenario(world: World) -> None:
        world.exchange.set()
        await world.publisher.admit((2, "actor"), version=1)

    world = World(staleness=0, samplers=2)
    asyncio.run(scenario(world))
    assert world.said[2:] == [
        "sampler staged 2",
        "sampler switch 2",
        "sampler score 2",
        "sampler beat 2",
    ]
    world = World(staleness=0, samplers=2)
    world.dead = {(2, "switch"), (2, "score"), (2, "beat")}
    with pytest.raises(Lost, match="sampler/2, beat: it died"):
        asyncio.run(scenario(world))


def test_a_sampler_that_serves_other_bytes_ends_the_run():
    world = World(staleness=0)
    world.serves = "e" * 64

    async def scenario() -> None:
        world.exchange.set()
        async with asyncio.TaskGroup() as background:
            await world.publish(1, background)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(scenario())
    assert (
        "sampler/0 holds version 1 with digest eeeeeeeeeeee; the learner sent version 1 with "
        in (str(caught.value.exceptions[0]))
    )
    assert "release" not in world.said
