"""The demo itself: GRPO raises the held-out accuracy of a model that reasons, on three seeds."""

import json
from pathlib import Path

import pytest
from runs import ROOT, cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_grpo_teaches_the_model_to_think_before_it_answers(seed: int, tmp_path: Path):
    recipe = str(ROOT / "recipes" / "demo.yaml")
    output = cohort(
        "train", recipe, f"seed={seed}", f"output_dir={tmp_path}", expect=0, seconds=1700
    )
    print(output[-1500:])
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert result["accuracy_start"] < 0.05
    assert 0.20 <= result["accuracy_warm"] <= 0.45
    assert result["accuracy_final"] >= 0.85
    assert result["seed"] == seed
    assert result["seconds"]["total"] < 900
