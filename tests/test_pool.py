"""Calls to actors: least busy first, deadlines with names, a dead scorer replaced."""

import asyncio
import os
import time

import pytest
import ray

from cluster.pool import Pool, ask_all

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0, max_concurrency=8)
class Worker:
    def work(self, seconds: float = 0.0, error: str = "") -> int:
        time.sleep(seconds)
        if error == "exit":
            os._exit(1)
        if error:
            raise ValueError(error)
        return os.getpid()


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_call_goes_to_the_least_busy():
    async def scenario() -> None:
        pool = Pool("worker", [Worker.remote() for _ in range(3)], seconds=60)
        pids = await asyncio.gather(*(pool.call("work", 0.3) for _ in range(3)))
        assert len(set(pids)) == 3
        slow = asyncio.create_task(pool.call("work", 1.0))
        await asyncio.sleep(0.1)
        busy = {await pool.call("work") for _ in range(4)}
        assert await slow not in busy
        pool.kill()

    asyncio.run(scenario())


def test_a_deadline_names_whom_it_waited_for():
    async def scenario() -> None:
        pool = Pool("worker", [Worker.remote()], seconds=0.5)
        with pytest.raises(RuntimeError, match=r"worker/0, work: no answer within"):
            await pool.call("work", 30.0)
        quick, slow = Worker.remote(), Worker.remote()
        calls = [("quick", quick.work.remote()), ("slow", slow.work.remote(30.0))]
        with pytest.raises(RuntimeError, match=r"no answer within 3 s from slow$"):
            await ask_all(calls, what="working", seconds=3)
        pool.kill()
        for actor in (quick, slow):
            ray.kill(actor)

    asyncio.run(scenario())


def test_an_error_comes_back_as_it_was_raised_with_the_actors_name():
    async def scenario() -> None:
        pool = Pool("worker", [Worker.remote()], seconds=60)
        with pytest.raises(ValueError, match="worker/0, work: no such column"):
            await pool.call("work", 0.0, "no such column")
        assert await pool.call("work"), "one poisoned call fails alone"
        pool.kill()

    asyncio.run(scenario())


def test_the_first_failure_of_a_collective_is_the_one_reported():
    async def scenario() -> None:
        failing, hanging = Worker.remote(), Worker.remote()
        calls = [("rank/0", hanging.work.remote(60.0)), ("rank/1", failing.work.remote(0.0, "bad"))]
        started = time.monotonic()
        with pytest.raises(ValueError, match="rank/1, update: bad"):
            await ask_all(calls, what="update", seconds=60)
        assert time.monotonic() - started < 30
        for actor in (failing, hanging):
            ray.kill(actor)

    asyncio.run(scenario())


def test_a_dead_member_is_replaced_where_that_is_allowed():
    async def scenario() -> None:
        fragile = Pool("worker", [Worker.remote()], seconds=60)
        with pytest.raises(RuntimeError, match="worker, work died"):
            await fragile.call("work", 0.0, "exit")
        robust = Pool("worker", [Worker.remote()], seconds=60, restart=lambda _: Worker.remote())
        with pytest.raises(RuntimeError, match="second try"):
            await robust.call("work", 0.0, "exit")  # kills whoever is asked
        assert await robust.call("work")
        assert robust.restarts == 2
        robust.kill()

    asyncio.run(scenario())
