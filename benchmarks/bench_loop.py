"""The loop: what a step costs beside its parts, and what the driver does per completion."""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import PAIRS, ROOT, demo_model, line

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
        "logging.tensorboard": "false",
        **options,
    }
    recipe = ROOT / "recipes" / "demo.yaml"
    words = [str(recipe), *(f"{key}={value}" for key, value in settings.items())]
    command = [sys.executable, "-m", "cluster", "train", *words, "--fresh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    text = (folder / "outputs" / "bench" / "metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if "learner/loss" in row]


class Instant:
    """A pool whose members answer at once."""

    def __init__(self, answer: Any) -> None:
        self.members = ["one"]
        self._answer = answer

    async def call(self, method: str, *args: Any) -> Any:
        return self._answer(method, *args)


def b4() -> None:
    """The driver's own CPU time per completion, with samplers, scorers and a learner that answer at
    once: admission, seeds, dispatch, scores, the group, the table, its metrics, the window."""
    import numpy as np

    from cluster.loop import admit
    from cluster.metrics import describe, flight, staleness
    from cluster.run import Run
    from cluster.scoring import Scoring
    from cluster.window import Window
    from rewards import RewardConfig
    from rollout import Completion, Prompt
    from rollout.config import SamplingConfig
    from rollout.schema import to_table

    size, per_step, steps = 16, 32, 10
    siblings = tuple(
        Completion(
            token_ids=np.arange(200, dtype=np.int32),
            trainable=np.ones(200, dtype=np.bool_),
            logprobs=np.full(200, -1.0, dtype=np.float32),
            versions=np.zeros(200, dtype=np.int32),
            text="the answer is 7",
            finish_reason="stop",
        )
        for _ in range(size)
    )
    ids = np.arange(100, dtype=np.int32)
    given = [Prompt(id=f"{i}", token_ids=ids, text="?", answer="7", source="") for i in range(64)]

    def judge(_: str, groups: list[dict]) -> list[Any]:
        plain = {"number": [[float(i % 2) for i in range(size)], [1e-6] * size]}
        return [[{"items": g["items"], "plain": plain, "more": []}] for g in groups]

    async def work() -> float:
        run: Any = SimpleNamespace()
        rewards = RewardConfig.model_validate({"verifiers": {"number": 1.0}})
        sampler = SimpleNamespace(group_size=size, sampling=SamplingConfig())
        run.config = SimpleNamespace(
            seed=1, sampler=sampler, schedule=SimpleNamespace(uniform_groups="train")
        )
        run.samplers = Instant(lambda *_: siblings)
        run.scoring = Scoring(rewards, 512, Instant(judge), {})  # type: ignore[arg-type]
        run.algorithm = SimpleNamespace(greedy=False)
        run.inputs = SimpleNamespace(
            prompts=SimpleNamespace(at=lambda ticket: given[ticket % 64]), tokenizer=None
        )
        run.judged = lambda *a: Run.judged(run, *a)
        run.sampled_groups = 0
        run.window = Window(groups_per_step=per_step, max_staleness=2, budget=per_step * steps)
        started = time.process_time()
        admission = asyncio.create_task(admit(run))
        for step in range(steps):
            groups = await run.window.take(per_step)
            describe(groups) | staleness(groups, step) | flight(run.window)
            to_table(groups, step=step + 1, run="b", temperature=1.0)
            await run.window.release(per_step)
        spent = time.process_time() - started
        admission.cancel()
        return spent / (steps * per_step * size) * 1e6

    deque((asyncio.run(work()) for _ in range(2)), maxlen=0)  # warm
    found = [asyncio.run(work()) for _ in range(PAIRS)]
    what = "microseconds of the driver's CPU per completion, groups of 16, 200 tokens each"
    line("B4", what, found, "<= 50")
