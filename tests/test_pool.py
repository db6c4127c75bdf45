"""Calls to actors: least busy first, deadlines with names, a dead scorer replaced."""

import asyncio
import os
import time
from array import array
from pathlib import Path

import pytest
import ray
from builders import completion, prompt

from cluster.errors import Lost
from cluster.lengths import Lengths
from cluster.pool import Pool, ask_all
from rewards.packed import Judged, Parcel, Piece, unpack_groups

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


def test_a_heavy_call_counts_for_more_than_light_ones():
    async def scenario() -> None:
        pool = Pool("worker", [Worker.remote() for _ in range(2)], seconds=60)
        heavy = asyncio.create_task(pool.call("work", 1.0, load=3.5))
        await asyncio.sleep(0.05)
        light = await asyncio.gather(*(pool.call("work", 0.2) for _ in range(3)))
        assert len(set(light)) == 1 and await heavy not in light
        pool.kill()

    asyncio.run(scenario())


def test_lengths_are_expected_to_be_what_they_were():
    lengths = Lengths()
    assert lengths.expected(prompt(1)) == 1.0, "nobody knows anything"
    lengths.saw(prompt(1), [completion(4), completion(8)])
    assert lengths.expected(prompt(1)) == lengths.expected(prompt(2)) == 1.0
    for number in range(2, 400):
        lengths.saw(prompt(number), [completion(2)])
    assert 2.9 < lengths.expected(prompt(1)) <= 3.0
    assert lengths.expected(prompt(9)) == pytest.approx(1.0, rel=0.01)


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


def test_a_lost_member_is_told_of_once_and_its_successor_is_asked():
    async def scenario() -> None:
        fragile = Pool("worker", [Worker.remote()], seconds=60)
        with pytest.raises(Lost, match="worker/0, work: The actor died"):
            await fragile.call("work", 0.0, "exit")
        with pytest.raises(RuntimeError, match="worker: none of 1 is left"):
            await fragile.call("work")

        told: list[int] = []

        def successor(index: int, why: str) -> None:
            told.append(index)
            robust.put(robust.place(index, Worker.remote()))

        robust = Pool(
            "worker", [Worker.remote() for _ in "ab"], seconds=60, lost=successor, tries=2
        )
        with pytest.raises(Lost, match="worker/"):
            await robust.call("work", 0.0, "exit")  # kills whoever is asked, twice
        assert len(told) == 2
        assert await robust.call("work")
        calls = [robust.call("work", 1.0) for _ in range(4)]
        ray.kill(robust.members[0])
        await asyncio.gather(*calls)
        assert len(told) == 3, "two calls were under way on it; it died once"
        robust.kill()

    asyncio.run(scenario())


def test_calls_wait_while_nobody_is_there_and_nobody_else_is_asked_before_it_is_put_to_work():
    async def scenario() -> None:
        pool = Pool("worker", [Worker.remote()], seconds=60, lost=lambda *_: None)
        with pytest.raises(Lost):
            await pool.call("work", 0.0, "exit")
        assert pool.live == []
        waiting = asyncio.create_task(pool.call("work"))
        newcomer = pool.place(0, Worker.remote())
        pid = await pool.ask(newcomer, "work")
        assert not waiting.done() and pool.live == []
        pool.put(newcomer)
        assert await waiting == pid and pool.live == [newcomer]
        pool.put(pool.place(1, Worker.remote()))
        assert len({await pool.ask(member, "work") for member in pool.live}) == 2
        pool.kill()

    asyncio.run(scenario())


def test_a_death_is_first_whoever_failed_before():
    """A rank that is killed makes the others' collectives fail, and those are heard of earlier."""

    async def scenario() -> None:
        failing, dying = Worker.remote(), Worker.remote()
        calls = [
            ("rank/0", failing.work.remote(0.0, "connection closed by peer")),
            ("rank/1", dying.work.remote(1.0, "exit")),
        ]
        with pytest.raises(Lost, match="rank/1, update") as caught:
            await ask_all(calls, what="update", seconds=60)
        assert caught.value.who == "rank/1"
        ray.kill(failing)

    asyncio.run(scenario())


# -- the pool that scores -------------------------------------------------------------------------

PROGRAMS = {
    "right": "def f(x):\n    return x + 1",
    "wrong": "def f(x):\n    return x",
    "endless": "def f(x):\n    while True:\n        pass",
    "cheating": "import os\ndef f(x):\n    os._exit(0)",
}


def test_real_scorers_run_programs_and_a_hang_blocks_no_other_group():
    from cluster.actors import ScorerActor
    from cluster.scoring import Scorers
    from rewards import Attempt, RewardConfig, Rubric, Task
    from rewards.scorer import LANES

    config = RewardConfig.model_validate(
        {"verifiers": {"code": {"seconds": 2.0, "total_seconds": 2.0}}, "timeout": 5.0}
    )
    task = Task(answer='[{"call": "f", "arguments": [1], "expected": 2}]')
    rubric = Rubric(weights=config.weights)

    def attempts(*names: str) -> list[Attempt]:
        return [Attempt(text=PROGRAMS[n], num_tokens=1, truncated=False) for n in names]

    async def scenario() -> None:
        actors = [ScorerActor.options(num_cpus=0, max_concurrency=LANES).remote() for _ in "ab"]
        pool = Pool("scorer", actors, seconds=60)
        await pool.all("start", config)
        scorers = Scorers(pool, rubric.needs)
        started = time.monotonic()
        stuck = [asyncio.create_task(scorers.verdicts(task, attempts("endless"))) for _ in "abcd"]
        await asyncio.sleep(0.5)
        tried = attempts("right", "wrong", "cheating")
        verdicts = await scorers.verdicts(task, tried)
        assert time.monotonic() - started < 2.0, "it did not wait for those that hang"
        found = [rubric.score(a, v) for a, v in zip(tried, verdicts, strict=True)]
        assert [(s.outcome, s.reward) for s in found] == [
            ("scored", 1.0),
            ("scored", 0.0),
            ("tampered", 0.0),
        ]
        for task_ in stuck:
            [[verdict]] = [list(v.values()) for v in await task_]
            assert verdict.outcome == "timeout"
        assert time.monotonic() - started < 10.0
        pool.kill()

    asyncio.run(scenario())


class Judge:
    """A scorer with no processes: it notes how many groups travel in each call."""

    def __init__(self, members: int = 1) -> None:
        self.members = ["member"] * members
        self.calls: list[int] = []
        self.seconds = 1e-4
        self.error: Exception | None = None
        self.late: set[str] = set()

    async def call(self, _: str, parcel: Parcel) -> Judged:
        groups = texts_of(parcel)
        self.calls.append(len(groups))
        await asyncio.sleep(0.001)
        if self.error:
            raise self.error
        late = [n for n, texts in enumerate(groups) if self.late.intersection(texts)]
        again = range(late[0], len(groups)) if late and len(groups) > 1 else ()
        values = [float(text) for texts in groups for text in texts]
        numbers = array("d", values + [self.seconds] * len(values)).tobytes()
        return Judged([Piece(range(len(values)), ["v"], numbers)], again)


def texts_of(parcel: Parcel) -> list[list[str]]:
    return [columns.text for _, columns in unpack_groups(parcel.data)]


def judged(judge: Judge, count: int) -> list[float]:
    """The value of each of `count` groups of one completion, all handed in at once, three times."""
    from cluster.scoring import Scorers
    from rewards import Attempt, Task

    async def scenario() -> list[float]:
        scorers = Scorers(judge, lambda _: True)  # type: ignore[arg-type]
        tried = [Attempt(text=f"{n}", num_tokens=1, truncated=False) for n in range(count)]
        asked = [[scorers.verdicts(Task(answer=""), [t]) for t in tried] for _ in range(3)]
        for each in asked:
            async with asyncio.timeout(20):
                found = await asyncio.gather(*each, return_exceptions=True)
        return [f if isinstance(f, BaseException) else f[0]["v"].value for f in found]  # type: ignore

    return asyncio.run(scenario())


def test_groups_that_wait_travel_together_where_verifiers_are_quick():
    judge = Judge()
    assert judged(judge, 500) == list(range(500)), "to each its own"
    assert sum(judge.calls) == 1500 and len(judge.calls) < 300
    assert 32 <= max(judge.calls) <= 128
    slow = Judge()
    slow.seconds = 1.0
    assert judged(slow, 50) == list(range(50))
    assert set(slow.calls) == {1}, "nobody travels with one that takes its time"


def test_what_waits_is_shared_out_among_the_scorers():
    judge = Judge(members=4)
    judge.seconds = 1e-6
    assert judged(judge, 100) == list(range(100))
    assert max(judge.calls) <= 26, "no scorer takes what three others could begin with"


def test_what_travelled_with_a_late_group_is_asked_for_again_alone():
    judge = Judge()
    judge.late = {"77", "300"}
    assert judged(judge, 500) == list(range(500))
    assert sum(judge.calls) > 1500, "some went twice"


def test_a_scorer_that_fails_fails_all_that_travel():
    judge = Judge()
    judge.error = RuntimeError("scorer/0, judge: no answer within 60 s")
    found = judged(judge, 20)
    assert [str(error) for error in found] == [str(judge.error)] * 20
    judge.error = KeyError("of no kind that was thought of")  # type: ignore[assignment]
    assert len(judged(judge, 20)) == 20, "nobody waits for ever"


class Mortal(Judge):
    """One scorer after another: each dies of group 77, and all calls that it has with it."""

    deaths = 0
    alive: asyncio.Future | None = None

    async def call(self, _: str, parcel: Parcel) -> Judged:
        if self.alive is None or self.alive.done():
            self.alive = asyncio.get_running_loop().create_future()
        alive = self.alive
        await asyncio.sleep(0.001)
        if ["77"] in texts_of(parcel) and not alive.done():
            self.deaths += 1
            alive.set_result(None)
        if alive.done():
            raise Lost("scorer/0, judge", "out of memory")
        return await super().call(_, parcel)


@pytest.mark.parametrize("seconds", [1e-6, 1.0], ids=["quick", "slow"])
def test_a_group_that_scorers_die_of_harms_no_other(seconds: float):
    scorer = Mortal()
    scorer.seconds = seconds
    found = judged(scorer, 500)
    assert [f for f in found if not isinstance(f, BaseException)] == [
        n for n in range(500) if n != 77
    ]
    assert isinstance(found[77], Lost)
    assert scorer.deaths == 3 * 2, "two scorers, each of the three times it was asked for"


def test_a_group_that_scorers_die_of_is_unscorable():
    from cluster.scoring import Scoring
    from rewards import RewardConfig

    class Dies(Judge):
        async def call(self, _: str, parcel: Parcel) -> Judged:
            raise Lost("scorer/0, judge", "out of memory")

    config = RewardConfig.model_validate({"verifiers": {"number": 1.0, "think_number": 0.2}})
    scoring = Scoring(config, 8, Dies(), {})  # type: ignore[arg-type]
    scores = asyncio.run(scoring.score(prompt(), [completion(), completion()]))
    assert [score.outcome for score in scores] == ["unscorable"] * 2
    assert "scorer/0, judge: out of memory" in scores[0].note


def test_an_actor_elsewhere_shows_its_stacks_when_asked_and_once(tmp_path: Path):
    from cluster.actors import ScorerActor
    from cluster.reaper import RUN_MARK
    from rewards import RewardConfig

    env = {"runtime_env": {"env_vars": {RUN_MARK: str(tmp_path)}}}
    scorer = ScorerActor.options(num_cpus=0, name="x/scorer/3", **env).remote()  # type: ignore
    try:
        config = RewardConfig.model_validate({"verifiers": {"number": 1.0}})
        ray.get(scorer.start.remote(config), timeout=60)
        for _ in range(2):
            ray.get(scorer.show_stacks.remote(), timeout=10)
            time.sleep(1)  # a signal takes its time
    finally:
        ray.kill(scorer)
    [path] = (tmp_path / "stacks").glob("scorer-3.*.txt")
    assert path.read_text().count("Current thread") == 1


def test_whoever_is_free_first_takes_the_next_group():
    from cluster.scoring import Scorers
    from rewards import Attempt, Task
    from rewards.scorer import LANES

    class Slow(Judge):
        def __init__(self) -> None:
            super().__init__(members=2)
            self.under_way = self.most = 0

        async def call(self, _: str, parcel: Parcel) -> Judged:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(2.0 if texts_of(parcel) == [["1"]] else 0.01)
            self.under_way -= 1
            return await super().call(_, parcel)

    async def scenario() -> None:
        judge = Slow()
        judge.seconds = 1.0
        scorers = Scorers(judge, lambda _: True)  # type: ignore[arg-type]

        def ask(text: str) -> asyncio.Task:
            tried = Attempt(text=text, num_tokens=1, truncated=False)
            return asyncio.create_task(scorers.verdicts(Task(answer=""), [tried]))

        slow = ask("1")
        started = time.monotonic()
        await asyncio.gather(*(ask("0") for _ in range(200)))
        assert time.monotonic() - started < 1.5, "none of them stood in line behind the slow one"
        assert judge.most == LANES * 2
        await slow

    asyncio.run(scenario())
