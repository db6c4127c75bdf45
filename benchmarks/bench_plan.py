"""The planner: what it says of runs that it was not fitted to, against the runs."""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_loop import train
from measure import ROOT, cohort, demo_model, line, random_model

CONFIGURATIONS: list[tuple[int, int, int, int]] = [
    (0, 4, 8, 64),
    (0, 8, 4, 32),
    (0, 16, 8, 48),
    (1, 4, 16, 64),
    (1, 8, 8, 32),
    (2, 8, 8, 64),
    (4, 8, 4, 48),
]
"""(max_staleness, groups per step, group size, longest completion)"""
STEPS = 16


def options_of(configuration: tuple[int, int, int, int], model: str, dataset: Path) -> dict:
    staleness, groups, size, longest = configuration
    return {
        "model.path": model,
        "prompts.dataset": dataset,
        "schedule.max_staleness": staleness,
        "schedule.groups_per_step": groups,
        "sampler.group_size": size,
        "sampler.sampling.max_tokens": longest,
        "learner.optim.lr": 1e-12,  # lengths stay what they are
        "steps": STEPS + 2 * staleness,
    }


def measured(folder: Path, options: dict[str, Any]) -> float:
    """Seconds of a step, from the end of one to the end of the next, once the run is settled."""
    rows = train(folder, str(options["model.path"]), options)
    settled = rows[options["schedule.max_staleness"] + 3 :]
    return (settled[-1]["time"] - settled[0]["time"]) / (len(settled) - 1)


def b13() -> None:
    """Constants are measured on one recipe per model; so are the lengths. The other recipes differ
    in schedule, groups, their size and the longest completion."""
    from cluster.config import load
    from cluster.planner.costs import Constants, Measured
    from cluster.planner.plan import describe
    from cluster.planner.simulate import Workload, simulate

    errors, shown = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = demo_model(folder / "demo")
        large = random_model(folder / "large", hidden=192, layers=3, vocabulary=1024)
        for word in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (file := Path(small) / word).exists():
                (Path(large) / word).write_bytes(file.read_bytes())
        dataset = Path(small).parent / "train.jsonl"
        for model in (small, large):
            like = folder / f"like-{Path(model).name}"
            train(like, model, options_of((0, 16, 8, 64), model, dataset))
            workload = Workload.recorded(like / "outputs" / "bench")
            constants = Constants.read(calibrated(folder, model, dataset))
            described = describe(model)
            for configuration in CONFIGURATIONS:
                options = options_of(configuration, model, dataset)
                words = [f"{key}={value}" for key, value in options.items()]
                config = load([str(ROOT / "recipes" / "demo.yaml")], words).config
                costs = Measured(constants, config, described)
                said = simulate(config, costs, workload, steps=40).step_seconds
                found = measured(folder / "run", options)
                errors.append(abs(said - found) / found)
                shown.append([Path(model).name, *configuration, round(said, 3), round(found, 3)])
                print(json.dumps(shown[-1]), file=sys.stderr, flush=True)
    what = "mean error of the planner's step time, 2 models x 7 recipes it was not fitted to"
    line("B13", what, errors, "<= 0.05", middle=statistics.fmean, runs=shown)


def calibrated(folder: Path, model: str, dataset: Path) -> Path:
    """`cluster plan --measure` on the recipe that the lengths are of."""
    path = folder / f"{Path(model).name}.json"
    options = {**options_of((0, 16, 8, 64), model, dataset), "prepare": "", "eval.dataset": ""}
    cohort("plan", ROOT / "recipes" / "demo.yaml", options, "--measure", str(path))
    return path
