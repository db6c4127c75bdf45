"""Every row on the demo's task, from its warm start: real runs through the command line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, cohort

from learner.algorithms import ALGORITHMS

pytestmark = pytest.mark.slow

STEPS = 12
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo_process": {"rewards.verifiers": '{"recipes.demo:right_steps": 1.0, "think_number": 0.2}'},
    "ppo": {"learner.critic.lr": 3e-3},
}


def train(name: str, folder: Path, **options: Any) -> list[dict[str, float]]:
    """The metrics of a run of one row."""
    recipe = folder / f"{name}.yaml"
    # The recipe's own clip is GRPO's; each row brings its.
    text = (ROOT / "recipes" / "demo.yaml").read_text()
    dropped = ("    clip_low:", "    clip_high:", "    reduction:")
    recipe.write_text("\n".join(x for x in text.splitlines() if not x.startswith(dropped)) + "\n")
    settings = {
        "name": name.replace("+", "p"),
        "output_dir": folder,
        "steps": STEPS,
        "eval.every": STEPS,
        "learner.algorithm.name": name,
        **options,
    }
    cohort("train", str(recipe), *(f"{k}={v}" for k, v in settings.items()), seconds=900)
    lines = (folder / settings["name"] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def grpo(folder: Path) -> list[dict[str, float]]:
    """The first run makes the warm start that all others begin with."""
    return train("grpo", folder)


SAMPLED = [name for name, row in ALGORITHMS.items() if not row.supervised]


@pytest.mark.parametrize("name", SAMPLED)
def test_a_row_trains_on_the_demos_task(name: str, grpo: list[dict[str, float]], folder: Path):
    start = folder / "grpo"
    warm = json.loads((start / "warmup" / "result.json").read_text())
    rows = grpo
    if name != "grpo":
        rows = train(
            name,
            folder,
            **{
                "prepare": "",
                "model.path": warm["model"],
                "prompts.dataset": start / "start-1" / "train.jsonl",
                "eval.dataset": start / "start-1" / "heldout.jsonl",
                **OPTIONS.get(name, {}),
            },
        )
    wrong = {k: v for row in rows for k, v in row.items() if not math.isfinite(v)}
    assert not wrong, "figures that are not finite"
    steps = [row for row in rows if "learner/loss" in row]
    assert len(steps) == STEPS
    first, last = ([row["reward/mean"] for row in part] for part in (steps[:3], steps[-3:]))
    print(f"{name}: reward {sum(first) / 3:.3f} -> {sum(last) / 3:.3f}")
    assert sum(last) > sum(first), f"reward by step: {[row['reward/mean'] for row in steps]}"
    if ALGORITHMS[name].critic:
        explained = [row["critic/explained_variance"] for row in steps]
        assert sum(explained[-4:]) > sum(explained[:4]), f"explained variance by step: {explained}"
