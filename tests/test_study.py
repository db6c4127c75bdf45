"""The study's report, from made-up numbers: every figure is there, and it says what they say."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT

sys.path.append(str(ROOT / "benchmarks"))
STEPS = 8


def made_up(study: str, arm: str, seed: int, *, slow: float, ppo: bool = False) -> dict[str, Any]:
    steps = list(range(1, STEPS + 1))
    found = {
        "study": study,
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "evaluated": [0, *steps],
        "accuracy": [0.25 + 0.7 * step / STEPS + 0.001 * seed for step in (0, *steps)],
        **{
            key: [0.1] * STEPS
            for key in ("reward/mean", "rollout/uniform_groups", "policy/entropy")
        },
        "policy/clip_fraction": [0.0] * STEPS,
        "policy/kl_behaviour": [0.0] * STEPS,
        "learner/grad_norm": [0.1] * STEPS,
        "rollout/length": [20.0] * STEPS,
        "schedule/staleness_mean": [0.0] * STEPS,
        "policy/importance_ess": [1.0] * STEPS,
        "time/rollout": [1.0] * STEPS,
        "time/update": [1.0 * slow] * STEPS,
        "time/publish": [0.0] * STEPS,
    }
    if ppo:
        found["critic/explained_variance"] = [math.sqrt(step / STEPS) for step in steps]
    if study == "kl":
        found["policy/kl_reference"] = [0.01 * step for step in steps]
    return found


@pytest.fixture
def numbers() -> dict[str, Any]:
    runs = []
    for seed in (1, 2, 3):
        runs.append(made_up("main", "grpo", seed, slow=1.0))
        runs.append(made_up("main", "ppo", seed, slow=2.5, ppo=True))
    arms = {
        "group": ("2", "4", "16"),
        "kl": ("0.001", "0.04", "ppo 0.001"),
        "std": ("without",),
        "clip": ("higher", "symmetric"),
        "staleness": ("1", "4"),
    }
    runs += [made_up(study, arm, 1, slow=1.0) for study in arms for arm in arms[study]]
    one = {"weights": 4000, "optimizer": 6000}
    roles = {
        "policy": {**one, "total": 10_000, "with_gradients": 12_000},
        "policy + reference": {**one, "total": 14_000, "with_gradients": 16_000},
        "policy + reference + critic": {**one, "total": 24_000, "with_gradients": 28_000},
    }
    shape = {"layers": 2, "hidden": 8, "intermediate": 16, "kv": 8, "vocabulary": 32}
    memory = {
        "ranks": 2,
        "stages": {str(stage): roles for stage in range(4)},
        "parameters": 1000,
        "shape": shape,
        "tokens": 64,
        "activations": {"policy": 90_000, "critic": 80_000},
    }
    base = {"group": "8", "kl": "0", "std": "with", "staleness": "0"}
    return {
        "steps": STEPS,
        "completions": 256,
        "base_arms": base,
        "runs": runs,
        "memory": memory,
    }


def test_the_report_says_what_the_numbers_say(numbers: dict[str, Any], tmp_path: Path):
    import study_report

    study_report.write(numbers, tmp_path)
    text = (tmp_path / "README.md").read_text()
    for figure in ("memory", "accuracy", "stability", "ablations"):
        assert (tmp_path / f"{figure}.png").stat().st_size > 5_000
        assert f"]({figure}.png)" in text
    # policy 12,000 of 24,000; with reference 16,000 of 28,000
    assert "It held for the states of a learner**: 50% to 50% measured" in text
    assert "43% to 43% with one" in text
    # (1 + 2.5) / (1 + 1)
    assert "It held for a step" in text and "1.75 (1.75 to 1.75) times as long per step" in text
    assert "2.50 (2.50 to 2.50) times for the update alone" in text
    assert "The critic learns" in text
    assert text.count("| 16 |") == 1 and "| ppo 0.001 |" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_a_claim_may_be_exceeded(numbers: dict[str, Any], tmp_path: Path):
    import study_report

    for run in numbers["runs"]:
        if run["arm"] == "ppo":
            run["time/update"] = [5.0] * STEPS
    study_report.write(numbers, tmp_path)
    assert "It more than held for a step" in (tmp_path / "README.md").read_text()


def test_a_claim_that_does_not_hold_is_said_so(numbers: dict[str, Any], tmp_path: Path):
    import study_report

    for run in numbers["runs"]:
        if run["arm"] == "ppo":
            run["time/update"] = [1.1] * STEPS
            run["accuracy"] = [0.3] * (STEPS + 1)
            run["critic/explained_variance"] = [0.0] * STEPS
    study_report.write(numbers, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "It did not hold for a step" in text and "never" in text
    assert "could not be judged for the time to 85%" in text
    assert "did not learn on every seed" in text


def test_every_run_of_the_study_is_a_recipe_that_is_accepted():
    import study

    every = list(study.trials(study.MAIN_SEEDS))
    assert len({trial.name for trial in every}) == len(every)
    assert [t.seed for t in every if t.study == "main"] == [1, 1, 2, 2, 3, 3]
    for trial in every:
        options = {**trial.options, "prepare": "", "model.path": "x", "prompts.dataset": "y"}
        from cluster.config import load

        config = load([str(study.RECIPE)], [f"{k}={v}" for k, v in options.items()]).config
        config.check()
        completions = config.sampler.group_size * config.schedule.groups_per_step
        assert completions == study.COMPLETIONS


@pytest.mark.slow
def test_the_whole_study_runs_from_one_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "benchmarks/study.py", "--quick", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "## 1. Memory" in (tmp_path / "docs" / "README.md").read_text()
    data = json.loads((tmp_path / "docs" / "data.json").read_text())
    assert all(len(run["steps"]) == 2 for run in data["runs"])
