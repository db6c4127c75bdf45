"""GRPO against PPO, measured: `make study`, or `python benchmarks/study.py [--folder F] [--quick]`.

Real runs of the demo's task through the command line, one after another; a run that is finished is
not run again, so an interrupted study goes on. Then the figures, `data.json` and the text under
`docs/study/`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RECIPE = ROOT / "recipes" / "demo.yaml"
MAIN_SEEDS = (1, 2, 3)
STEPS = 40
COMPLETIONS = 256
"""Of one step, in every run: the budget that all of them have."""

PPO = {"learner.algorithm.name": "ppo", "learner.critic.lr": 3e-3}
"""The best of 3e-4, 1e-3 and 3e-3 on the first seed: the critic starts with a head of zeros."""


@dataclass(frozen=True)
class Trial:
    """One run of the study."""

    study: str
    arm: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"seed-{self.seed}/{self.study}-{self.arm.replace(' ', '-')}"


def trials(seeds: tuple[int, ...]) -> Iterator[Trial]:
    """All runs; `main-grpo` is also the arm of each ablation that has its setting."""
    for seed in seeds:
        yield Trial("main", "grpo", seed)
        yield Trial("main", "ppo", seed, PPO)
    seed = seeds[0]
    for size in (2, 4, 16):
        options = {"sampler.group_size": size, "schedule.groups_per_step": COMPLETIONS // size}
        yield Trial("group", str(size), seed, options)
    for coef in (0.001, 0.04):
        yield Trial("kl", str(coef), seed, {"learner.algorithm.kl.coef": coef})
    yield Trial("std", "without", seed, {"learner.algorithm.scale": "none"})
    yield Trial("kl", "ppo 0.001", seed, {**PPO, "learner.algorithm.kl.coef": 0.001})
    for arm, high in (("higher", 0.28), ("symmetric", 0.2)):
        # One update of fresh data has ratios of 1: without minibatches no clip ever acts.
        options = {"learner.algorithm.minibatches": 4, "learner.algorithm.clip_high": high}
        yield Trial("clip", arm, seed, options)
    for staleness in (1, 4):
        yield Trial("staleness", str(staleness), seed, {"schedule.max_staleness": staleness})


BASE_ARMS = {"group": "8", "kl": "0", "std": "with", "staleness": "0"}
"""The arm of each ablation that `main-grpo` of the first seed is."""


def start_of(folder: Path, seed: int) -> dict[str, Any]:
    """Paths of the warm start that the seed's first run made."""
    run = folder / f"seed-{seed}" / "main-grpo"
    result = json.loads((run / "warmup" / "result.json").read_text())
    return {
        "prepare": "",
        "model.path": result["model"],
        "prompts.dataset": run / f"start-{seed}" / "train.jsonl",
        "eval.dataset": run / f"start-{seed}" / "heldout.jsonl",
    }


def run(trial: Trial, folder: Path, *, steps: int) -> None:
    """Train, unless it was done. Raises RuntimeError with the end of the run's output."""
    if (folder / trial.name / "result.json").exists():
        return
    options = {
        "name": trial.name,
        "output_dir": folder,
        "seed": trial.seed,
        "steps": steps,
        "eval.every": max(steps // 8, 1),
        "logging.keep_rollouts": "false",
        "logging.trackers": "[]",
        **({} if trial.name.endswith("main-grpo") else start_of(folder, trial.seed)),
        **trial.options,
    }
    log = folder / f"{trial.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cluster", "train", str(RECIPE)]
    command += [f"{key}={value}" for key, value in options.items()]
    with open(log, "w") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise RuntimeError(f"{trial.name} ended with {done.returncode}; {log} ends\n{tail}")


def curves(folder: Path, trial: Trial) -> dict[str, Any]:
    """What the report needs of one run, as plain numbers."""
    rows = [json.loads(line) for line in (folder / trial.name / "metrics.jsonl").open()]
    steps = [r for r in rows if "learner/loss" in r]
    evaluations = [r for r in rows if "eval/number_in_answer" in r]
    wanted = (
        *("reward/mean", "rollout/length", "rollout/uniform_groups", "policy/entropy"),
        *("policy/clip_fraction", "policy/kl_behaviour", "policy/kl_reference"),
        *("learner/grad_norm", "schedule/staleness_mean", "policy/importance_ess"),
        *("critic/explained_variance", "critic/value_loss"),
        *("time/rollout", "time/update", "time/publish"),
    )
    return {
        "study": trial.study,
        "arm": trial.arm,
        "seed": trial.seed,
        "steps": [r["step"] for r in steps],
        "evaluated": [r["step"] for r in evaluations],
        "accuracy": [r["eval/number_in_answer"] for r in evaluations],
        **{key: [r[key] for r in steps] for key in wanted if key in steps[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="run folders; default outputs/study")
    parser.add_argument("--docs", type=Path, help="figures and text; default docs/study")
    parser.add_argument("--quick", action="store_true", help="two steps, one seed: does it run?")
    given = parser.parse_args()
    folder = given.folder or ROOT / "outputs" / ("study-quick" if given.quick else "study")
    docs = given.docs or (folder / "docs" if given.quick else ROOT / "docs" / "study")
    folder, steps = folder.resolve(), 2 if given.quick else STEPS
    every = list(trials(MAIN_SEEDS[:1] if given.quick else MAIN_SEEDS))
    started = time.monotonic()
    for number, trial in enumerate(every, start=1):
        minutes = (time.monotonic() - started) / 60
        print(f"{minutes:5.1f} min  {number}/{len(every)}  {trial.name}", flush=True)
        run(trial, folder, steps=steps)
    import study_memory
    import study_report

    print(f"{(time.monotonic() - started) / 60:5.1f} min  memory", flush=True)
    model = start_of(folder, every[0].seed)["model.path"]
    data = {
        "steps": steps,
        "completions": COMPLETIONS,
        "base_arms": BASE_ARMS,
        "runs": [curves(folder, trial) for trial in every],
        "memory": study_memory.measure(model),
    }
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "data.json").write_text(json.dumps(data) + "\n")
    study_report.write(data, docs)
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:5.1f} min  done: {os.path.relpath(docs)}/README.md")


if __name__ == "__main__":
    main()
