"""What a publish waits for, and what waits for it: a `Publisher` between a learner and samplers
that answer when the test lets them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.publish import Publisher

DIGEST = "d" * 64


class World:
    """Members of both pools, which write down what they are asked for."""

    def __init__(self, *, staleness: int, backend: str = "shm", sampled: float = -1.0) -> None:
        self.said: list[str] = []
        self.exchange = asyncio.Event()
        self.sampled = sampled
        schedule = SimpleNamespace(max_staleness=staleness, in_flight="keep")
        device = SimpleNamespace(weight_backend=backend, canary_bound=1e-3)
        pools = (SimpleNamespace(all=self._learners), SimpleNamespace(all=self._samplers))
        config: Any = SimpleNamespace(schedule=schedule)
        self.publisher = Publisher(config, device, *pools, [1, 2])  # type: ignore[arg-type]

    async def _learners(self, name: str, *given: Any) -> list[Any]:
        self.said.append(f"learner {name}")
        if name == "send_weights":
            await self.exchange.wait()
        return {"send_weights": [(DIGEST, 1.0)], "score": [[-1.0]]}.get(name, [None])

    async def _samplers(self, name: str, *given: Any) -> list[Any]:
        self.said.append(f"sampler {name}")
        return {"acknowledged": [(1, DIGEST)], "score": [[self.sampled]]}.get(name, [None])

    async def publish(self, version: int, background: asyncio.TaskGroup) -> dict[str, float]:
        return await self.publisher.publish(version, self._release, background)

    async def _release(self) -> None:
        self.said.append("release")


ORDER = [
    "learner stage_weights", "learner score", "sampler staged", "sampler pause",
    "learner send_weights", "sampler acknowledged", "sampler resume", "release", "sampler score",
]  # fmt: skip


def test_the_learner_goes_on_while_samplers_exchange_their_weights():
    async def scenario() -> World:
        world = World(staleness=1)
        async with asyncio.TaskGroup() as background:
            await asyncio.wait_for(world.publish(1, background), 5)
            await asyncio.sleep(0.01)
            assert world.said == ORDER[:5], "the exchange did not begin"
            after = asyncio.create_task(world.publish(2, background))
            await asyncio.sleep(0.01)
            assert world.said == ORDER[:5], "a publish overtook the one before"
            after.cancel()
            world.exchange.set()
            await world.publisher.ended()
        return world

    assert asyncio.run(scenario()).said == ORDER


@pytest.mark.parametrize(("staleness", "backend"), [(0, "shm"), (3, "nccl")])
def test_the_learner_waits_where_nothing_can_be_trained_or_it_takes_part(
    staleness: int, backend: str
):
    async def scenario() -> None:
        world = World(staleness=staleness, backend=backend)
        async with asyncio.TaskGroup() as background:
            publishing = asyncio.create_task(world.publish(1, background))
            await asyncio.sleep(0.01)
            assert not publishing.done()
            world.exchange.set()
            found = await asyncio.wait_for(publishing, 5)
        assert world.said == ORDER
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
    assert world.said == ORDER, "the next publish went on"
    assert "learner and samplers disagree by 0.5" in str(caught.value.exceptions[0])
