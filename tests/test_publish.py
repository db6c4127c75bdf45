"""What a publish waits for, and what waits for it: `Run.publish` between a learner and samplers
that answer when the test lets them."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.run import Run

DIGEST = "d" * 64


class World:
    """Members of both pools, which write down what they are asked for."""

    def __init__(self, *, staleness: int, backend: str = "shm", sampled: float = -1.0) -> None:
        self.said: list[str] = []
        self.exchange = asyncio.Event()
        self.sampled = sampled
        run: Any = Run.__new__(Run)
        run.config = SimpleNamespace(
            schedule=SimpleNamespace(max_staleness=staleness, in_flight="keep")
        )
        run.device = SimpleNamespace(weight_backend=backend, canary_bound=1e-3)
        run.inputs = SimpleNamespace(prompts=object(), canary=[1, 2])
        run.progress = SimpleNamespace()
        run.learners = SimpleNamespace(all=self._learners)
        run.samplers = SimpleNamespace(all=self._samplers)
        run.window = SimpleNamespace(release=self._release)
        run.seconds, run._lap, run._published = {}, {}, {}
        run._evaluation = run._exchanging = None
        self.run: Run = run

    async def _learners(self, name: str, *given: Any) -> list[Any]:
        self.said.append(f"learner {name}")
        if name == "send_weights":
            await self.exchange.wait()
        return {"send_weights": [(DIGEST, 1.0)], "score": [[-1.0]]}.get(name, [None])

    async def _samplers(self, name: str, *given: Any) -> list[Any]:
        self.said.append(f"sampler {name}")
        return {"acknowledged": [(1, DIGEST)], "score": [[self.sampled]]}.get(name, [None])

    async def _release(self, count: int) -> None:
        self.said.append(f"release {count}")


ORDER = [
    "learner stage_weights", "learner score", "sampler staged", "sampler pause",
    "learner send_weights", "sampler acknowledged", "sampler resume", "release 8", "sampler score",
]  # fmt: skip


def test_the_learner_goes_on_while_samplers_exchange_their_weights():
    async def scenario() -> World:
        world = World(staleness=1)
        async with asyncio.TaskGroup() as background:
            await asyncio.wait_for(world.run.publish(1, 8, background), 5)
            await asyncio.sleep(0.01)
            assert world.said == ORDER[:5], "the exchange did not begin"
            after = asyncio.create_task(world.run.publish(2, 8, background))
            await asyncio.sleep(0.01)
            assert world.said == ORDER[:5], "a publish overtook the one before"
            after.cancel()
            world.exchange.set()
            await world.run.published()
        assert world.run._published["policy/canary_gap"] == 0.0
        return world

    assert asyncio.run(scenario()).said == ORDER


@pytest.mark.parametrize(("staleness", "backend"), [(0, "shm"), (3, "nccl")])
def test_the_learner_waits_where_nothing_can_be_trained_or_it_takes_part(
    staleness: int, backend: str
):
    async def scenario() -> None:
        world = World(staleness=staleness, backend=backend)
        async with asyncio.TaskGroup() as background:
            publishing = asyncio.create_task(world.run.publish(1, 8, background))
            await asyncio.sleep(0.01)
            assert not publishing.done()
            world.exchange.set()
            found = await asyncio.wait_for(publishing, 5)
        assert world.said == ORDER
        assert found["policy/canary_gap"] == 0.0, "its own metrics, not those of the one before"

    asyncio.run(scenario())


def test_weights_that_are_wrong_end_the_run_from_the_background():
    async def scenario() -> World:
        world = World(staleness=2, sampled=-1.5)
        world.exchange.set()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as background:
                await world.run.publish(1, 8, background)
                await world.run.publish(2, 8, background)
                world.said.append("went on")
        return world

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(scenario())
    assert "learner and samplers disagree by 0.5" in str(caught.value.exceptions[0])
