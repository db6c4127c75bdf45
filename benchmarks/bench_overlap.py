"""B1: what a step of a real asynchronous run takes, against the longer of sampling and learning
alone. A core for the sampler, one for the learner; the rest of the system runs where it finds room.

Alone is literal: the other core has nothing to do, so what the limit leaves out (the driver, Ray,
the memory that both cores share) counts against the run.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, demo_model, line, trained

SAMPLER, LEARNER = 0, 1
"""Cores"""
STEPS, SETTLED = 40, 6


def b1() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        raise RuntimeError("B1 needs two cores: one for the sampler, one for the learner")
    for name, keep_kv in (("B1", False), ("B1_keep_kv", True)):
        sampling, learning, steps = _run(keep_kv)
        limit = max(statistics.median(sampling), statistics.median(learning))
        what = "seconds of a step, staleness 2 / the longer of sampling and learning alone"
        line(
            name,
            f"{what}, a core each, keys and values {'kept' if keep_kv else 'recomputed'}",
            [step / limit for step in steps],
            "<= 1.03",
            sampling=round(statistics.median(sampling), 3),
            learning=round(statistics.median(learning), 3),
        )


def _run(keep_kv: bool) -> tuple[list[float], list[float], list[float]]:
    from cluster import inputs as inputs_module
    from cluster.config import load
    from cluster.device import resolve
    from cluster.progress import Progress
    from cluster.run import Run
    from cluster.session import ray_session

    with tempfile.TemporaryDirectory() as name:
        model = demo_model(Path(name) / "demo")
        options = {
            "model.path": model,
            "prompts.dataset": Path(model).parent / "train.jsonl",
            "prepare": "",
            "eval.dataset": "",
            "output_dir": name,
            "name": "b1",
            "steps": STEPS,
            "schedule.groups_per_step": 8,
            "schedule.max_staleness": 2,
            "sampler.group_size": 8,
            "sampler.max_running": 64,
            "sampler.keep_kv": keep_kv,
            "learner.ranks": 1,
            "learner.zero.stage": 0,
            "learner.optim.lr": 1e-12,  # lengths stay what they are
            "checkpoint.every": 0,
            "logging.trackers": "[]",
        }
        words = [f"{key}={value}" for key, value in options.items()]
        config = load([str(ROOT / "recipes" / "demo.yaml")], words).config
        config.folder.mkdir(parents=True)
        inputs, progress = inputs_module.read(config), Progress("plain")
        with ray_session(config, progress):
            run = Run(config, inputs, resolve(config, gpus=0), progress)
            try:
                return asyncio.run(_measured(run))
            finally:
                run.stop()


async def _measured(run: Any) -> tuple[list[float], list[float], list[float]]:
    import ray

    from cluster import loop
    from rollout.schema import seal

    await run.start()
    _pin("ray::Sampler", SAMPLER)
    _pin("ray::Learner", LEARNER)
    size = run.config.schedule.groups_per_step
    sampling, groups = await _sampling(run, size)
    await loop.train(run)
    ends = [row["time"] for row in trained(run.folder)]
    steps = [b - a for a, b in itertools.pairwise(ends[SETTLED:])]
    again, _ = await _sampling(run, size)
    learning = []
    for at in range(2 * size, 10 * size, size):  # what ended last is longer than most
        table = run.table(groups[at : at + size], step=STEPS + 1)
        started = time.perf_counter()
        await run.learners.all("update", ray.put(seal(table)), None)
        learning.append(time.perf_counter() - started)
    return sampling[2:] + again[2:], learning[2:], steps


async def _sampling(run: Any, size: int) -> tuple[list[float], list[Any]]:
    """Seconds per step's worth of groups, with a window's worth under way all the time."""
    from cluster import loop

    tickets, done, ends = iter(range(10**9)), [], []

    async def one_after_the_other() -> None:
        while len(ends) < 10:
            ticket = next(tickets)
            prompt = run.inputs.prompts.at(ticket)
            completions = await loop.sample(run, ticket, prompt, start=0)
            scores = await run.scoring.score(prompt, completions)
            done.append(run.judged(ticket, prompt, completions, scores))
            if len(done) % size == 0:
                ends.append(time.perf_counter())

    await asyncio.gather(*(one_after_the_other() for _ in range(3 * size)))
    return [b - a for a, b in itertools.pairwise(ends)], done


def _pin(name: str, core: int) -> None:
    """All threads of the actors of this name."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (process / "cmdline").read_bytes():
                for thread in (process / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), {core})
        except (FileNotFoundError, ProcessLookupError):
            continue
