"""The loop: what a step costs beside its parts, and what the driver does per completion."""

import asyncio
import itertools
import tempfile
import time
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import PAIRS, ROOT, cohort, demo_model, line, trained

STEPS = 24


def b2() -> None:
    """A real synchronous run: Ray, vLLM, DeepSpeed, the demo's start model. Its parts are the
    loop's phases (sampling with its verifiers, update, publish); a step is from the end of one to
    the end of the next."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = demo_model(folder / "demo")
        rows = train(folder, model, {"schedule.max_staleness": 0, "steps": STEPS})
    found = []
    for before, row in itertools.pairwise(rows[3:]):
        parts = sum(row[f"time/{phase}"] for phase in ("rollout", "update", "publish"))
        found.append((row["time"] - before["time"]) / parts)
    line("B2", "seconds of a synchronous step / the sum of its phases", found, "<= 1.01")


def train(folder: Path, model: str, options: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of a run of the demo's recipe without its preparation."""
    data = Path(model).parent
    settings = {
        "model.path": model,
        "prompts.dataset": data / "train.jsonl",
        "eval.dataset": "",
        "prepare": "",
        "output_dir": folder / "outputs",
        "name": "bench",
        "checkpoint.every": 0,
        "logging.trackers": "[]",
        **options,
    }
    cohort("train", ROOT / "recipes" / "demo.yaml", settings, "--fresh")
    return trained(folder / "outputs" / "bench")


class Instant:
    """A pool whose members answer at once."""

    def __init__(self, answer: Any) -> None:
        self.members = ["one"]
        self._answer = answer

    async def call(self, method: str, *args: Any, load: float = 1.0) -> Any:
        return self._answer(method, *args)


SIZE = 16
"""Completions of a group."""
GROUPS = 4
"""Groups that a virtual sampler decodes at the same time."""


def siblings_of(length: int) -> tuple[Any, ...]:
    import numpy as np

    from rollout import Completion

    return tuple(
        Completion(
            token_ids=np.arange(length, dtype=np.int32),
            trainable=np.ones(length, dtype=np.bool_),
            logprobs=np.full(length, -1.0, dtype=np.float32),
            versions=np.zeros(length, dtype=np.int32),
            text="the answer is 7",
            finish_reason="stop",
        )
        for _ in range(SIZE)
    )


def controller(samplers: Any, window: Any) -> Any:
    """What `cluster/loop.py` needs of a Run to admit, dispatch and score: the real window, loop and
    scoring, with scorers that answer at once."""
    import numpy as np

    from cluster.lengths import Lengths
    from cluster.poison import Trials
    from cluster.run import Run
    from cluster.scoring import Scoring
    from rewards import RewardConfig
    from rewards.packed import Judged, Parcel, Piece
    from rollout import Prompt
    from rollout.config import SamplingConfig

    def judge(_: str, parcel: Parcel) -> Judged:
        count = len(parcel.sizes) * SIZE
        numbers = array("d", [float(i % 2) for i in range(count)] + [1e-6] * count).tobytes()
        return Judged([Piece(range(count), ["number"], numbers)], ())

    ids = np.arange(100, dtype=np.int32)
    given = [Prompt(id=f"{i}", token_ids=ids, text="?", answer="7", source="") for i in range(64)]
    rewards = RewardConfig.model_validate({"verifiers": {"number": 1.0}})
    run: Any = SimpleNamespace(
        config=SimpleNamespace(
            seed=1,
            sampler=SimpleNamespace(group_size=SIZE, sampling=SamplingConfig()),
            schedule=SimpleNamespace(uniform_groups="train", max_group_size=0),
        ),
        samplers=samplers,
        scoring=Scoring(rewards, 512, Instant(judge), {}),  # type: ignore[arg-type]
        algorithm=SimpleNamespace(greedy=False),
        inputs=SimpleNamespace(
            prompts=SimpleNamespace(at=lambda ticket: given[ticket % 64]), tokenizer=None
        ),
        sampled_groups=0,
        window=window,
        lengths=Lengths(),
    )
    run.judged = lambda *a: Run.judged(run, *a)
    run.trials = Trials(lambda: asyncio.sleep(0))
    run.generate = lambda *a, **load: Run.generate(run, *a, **load)
    return run


def b4() -> None:
    """The driver's own CPU time per completion, with samplers, scorers and a learner that answer at
    once: admission, seeds, dispatch, scores, the group, the table, its metrics, the window."""
    from cluster.loop import admit
    from cluster.metrics import describe, flight, staleness
    from cluster.run import calm_collector
    from cluster.window import Window
    from rollout.schema import to_table

    per_step, steps = 32, 10
    siblings = siblings_of(200)

    async def work() -> float:
        window = Window(groups_per_step=per_step, max_staleness=2, budget=per_step * steps)
        run = controller(Instant(lambda *_: siblings), window)
        started = time.process_time()
        admission = asyncio.create_task(admit(run))
        for step in range(steps):
            groups = await window.take(per_step)
            describe(groups) | staleness(groups, step) | flight(window)
            to_table(groups, step=step + 1, run="b", temperature=1.0)
            await window.release(per_step)
        spent = time.process_time() - started
        admission.cancel()
        return spent / (steps * per_step * SIZE) * 1e6

    calm_collector()  # as a real driver does
    for _ in range(2):  # warm
        asyncio.run(work())
    found = [asyncio.run(work()) for _ in range(PAIRS)]
    what = "microseconds of the driver's CPU per completion, groups of 16, 200 tokens each"
    line("B4", what, found, "<= 50")


class Engine:
    """A virtual sampler: `GROUPS` groups at a time, first come first served. A group takes as long
    as its longest completion: lognormal with sigma 1, mean 1, cut at 6 by the length limit."""

    def __init__(self, rng: Any, siblings: Any, busy: list[float]) -> None:
        self._room = asyncio.Semaphore(GROUPS)
        self._rng, self._siblings, self._busy = rng, siblings, busy
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, *_: Any) -> Any:
        async with self._room:
            seconds = min(float(self._rng.lognormal(-0.5, 1.0)), 6.0)
            await asyncio.sleep(seconds)
            self._busy[0] += seconds
        return self._siblings


def virtual_run(samplers: int, *, staleness: int, steps: int, seed: int) -> tuple[float, float]:
    """(completions per second / what the samplers could do at most, CPU microseconds per
    completion) of the real window, pool, loop and scoring on so many virtual samplers.
    The learner takes no time, so the samplers are the limit."""
    import numpy as np

    from cluster.loop import admit
    from cluster.planner.virtual import in_virtual_time
    from cluster.pool import Pool
    from cluster.window import Window

    per_step, siblings, warm = samplers * GROUPS, siblings_of(8), 2 * staleness

    async def work() -> tuple[float, float]:
        rng, busy = np.random.default_rng(seed), [0.0]
        engines: Any = [Engine(rng, siblings, busy) for _ in range(samplers)]
        window = Window(groups_per_step=per_step, max_staleness=staleness, budget=10**9)
        run = controller(Pool("sampler", engines, seconds=1e9), window)
        admission = asyncio.create_task(admit(run))
        clock = asyncio.get_running_loop().time
        first, spent, worked = 0.0, 0.0, 0.0
        for step in range(steps):
            if step == warm:  # they all began at once: it takes a while until they are mixed
                first, spent, worked = clock(), time.process_time(), busy[0]
            await window.take(per_step)
            await window.release(per_step)
        seconds, cpu = clock() - first, time.process_time() - spent
        admission.cancel()
        done = (steps - warm) * per_step * SIZE
        return (busy[0] - worked) / (seconds * samplers * GROUPS), cpu / done * 1e6

    return in_virtual_time(work)


def b12() -> None:
    """1,000 samplers in virtual time. The bound: every slot of every sampler is always at work."""
    from cluster.run import calm_collector

    calm_collector()  # as a real driver does
    shares, growth = [], []
    for seed in range(3):
        share, many = virtual_run(1_000, staleness=8, steps=32, seed=seed)
        _, few = virtual_run(10, staleness=8, steps=200, seed=seed)
        shares.append(share)
        growth.append(many / few)
    what = "completions/s of 1,000 virtual samplers, staleness 8 / all of them always busy"
    line("B12", what, shares, ">= 0.97")
    line("B12_growth", "driver's CPU per completion, 1,000 samplers / 10", growth, "<= 1.15")
