"""Values that the peers' own code computed, against ours, entry by entry."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.advantages import Evidence
from learner.algorithms import Algorithm, build
from learner.config import AlgorithmConfig
from learner.golden import __main__ as golden
from learner.objectives import Counts

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = Path(__file__).with_name("golden") / "losses.json"
GOLDEN = json.loads(BUNDLED.read_text())


@pytest.mark.parametrize("entry", GOLDEN["entries"], ids=lambda e: e["name"])
def test_an_entry_agrees(entry: dict[str, Any]):
    missed = [f"{w}: expected {e}, got {g}" for w, e, g in golden.compare(entry, GOLDEN["cases"])]
    assert not missed


def test_an_entry_that_cannot_be_computed_is_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    strange = {"name": "x", "kind": "loss_of_mars", "case": "A", "hyper": {}, "expect": {"l": 1}}
    renamed = json.loads(json.dumps(GOLDEN["entries"][0]))
    renamed["hyper"].pop("loss_type")
    path = tmp_path / "golden.json"
    entries = [strange, renamed, GOLDEN["entries"][1]]
    path.write_text(json.dumps({"cases": GOLDEN["cases"], "entries": entries}))
    assert golden.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "x: cannot be computed: no entries of kind 'loss_of_mars' are known" in printed
    assert "cannot be computed: it has no 'loss_type'" in printed
    assert "3 entries, 1 agree, 2 do not" in printed


def test_the_whole_shared_file_agrees(shared: Path, capsys: pytest.CaptureFixture[str]):
    path = shared / "golden" / "losses.json"
    if not path.exists():
        pytest.skip("the shared golden values are not here")
    assert golden.main([str(path)]) == 0
    assert "457 entries, 457 agree, 0 do not" in capsys.readouterr().out


def test_a_miss_is_printed_with_both_numbers_and_ends_with_1(tmp_path: Path):
    changed = json.loads(BUNDLED.read_text())
    entry = next(e for e in changed["entries"] if e["kind"] == "trl_loss")
    entry["expect"]["loss"] += 1e-4
    entry["expect"]["grad_logps"][0][0] = 7.0
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(changed))
    done = subprocess.run(
        [sys.executable, "-m", "learner.golden", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{entry['name']}: grad_logps[0][0]: expected 7, got" in done.stdout
    assert f"{entry['name']}: loss: expected" in done.stdout
    assert f"{len(changed['entries'])} entries" in done.stdout.splitlines()[-1]
    assert "1 do not" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "not a file of golden values"),
        ('{"entries": []}', "'cases'"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "golden.json"
    path.write_text(text)
    assert golden.main([str(path)]) == 2
    assert words in capsys.readouterr().out


# -- the presets: what a config builds, not what the translation of an entry builds ---------------


def entry(name: str) -> dict[str, Any]:
    return next(e for e in GOLDEN["entries"] if e["name"] == name)


def loss_of(row: Algorithm, case: str, *, width: int = 1) -> tuple[float, np.ndarray]:
    """Loss and gradient of the row's own surrogate and reduction on a case."""
    values = {k: torch.tensor(v) for k, v in GOLDEN["cases"][case].items() if isinstance(v, list)}
    values = {k: v.double() for k, v in values.items()}
    mask, logps = values["mask"], values["logps"].requires_grad_(True)
    advantage = values["advantages"][:, None].expand_as(mask)
    loss, _ = row.surrogate(logps, values["old_logps"], advantage, mask)
    filled = int((mask.sum(1) > 0).sum())
    counts = Counts(tokens=int(mask.sum()), sequences=filled, max_tokens=width)
    total = torch.where(mask > 0, loss * row.reduction(mask, counts), 0.0).sum()
    (gradient,) = torch.autograd.grad(total, logps)
    return float(total.detach()), gradient.numpy()


PRESET_ENTRIES = {
    ("trl", "grpo"): ("trl/dapo/token/B", {}),
    ("trl", "dapo"): ("trl/dapo/token/clip_higher/A", {}),
    ("trl", "dr_grpo"): ("trl/dr_grpo/token/A", {}),
    ("trl", "gspo"): ("trl/grpo/sequence/gspo_paper/B", {}),
    ("trl", "cispo"): ("trl/cispo/token/A", {}),
    ("trl", "sapo"): ("trl/sapo/token/B", {}),
    ("verl", "grpo"): ("verl/policy_loss/vanilla/token-mean/A", {}),
    ("verl", "gspo"): (
        "verl/policy_loss/gspo/seq-mean-token-mean/clip_ratio_low=0.0003_clip_ratio_high=0.0004/B",
        {},
    ),
    ("verl", "sapo"): ("verl/policy_loss/sapo/seq-mean-token-mean/tau_pos=1.0_tau_neg=1.05/A", {}),
    ("verl", "gmpo"): (
        "verl/policy_loss/geo_mean/token-mean/clip_ratio_low=0.4_clip_ratio_high=0.4/B",
        {},
    ),
    ("verl", "cispo"): (
        "verl/policy_loss/cispo/token-mean/clip_ratio_low=0.2_clip_ratio_high=0.28/A",
        {"clip_high": 0.28},
    ),
    ("openrlhf", "grpo"): ("openrlhf/policy_loss/ppo/token/clip_higher/C", {"clip_high": 0.28}),
    ("openrlhf", "gspo"): ("openrlhf/policy_loss/gspo/B", {}),
}
"""(preset, row): the entry of the peer's own defaults, and what it sets besides."""


@pytest.mark.parametrize(("preset", "name"), PRESET_ENTRIES)
def test_a_presets_row_computes_the_peers_loss(preset: str, name: str):
    golden_name, options = PRESET_ENTRIES[preset, name]
    expected = entry(golden_name)
    row = build(AlgorithmConfig(preset=preset, name=name, **options))
    loss, gradient = loss_of(row, expected["case"], width=16)
    assert loss == pytest.approx(expected["expect"]["loss"], abs=1e-6)
    np.testing.assert_allclose(gradient, expected["expect"]["grad_logps"], atol=1e-6)


@pytest.mark.parametrize(("preset", "eps"), [("trl", 1e-4), ("verl", 1e-6), ("openrlhf", 1e-9)])
def test_a_presets_advantage_has_the_peers_eps(preset: str, eps: float):
    rewards = np.array([0.0, 1.0, 0.5])
    given = Evidence(rewards_N=rewards, groups_N=np.zeros(3, dtype=int))
    found = build(AlgorithmConfig(preset=preset)).advantage(given)
    np.testing.assert_allclose(found, (rewards - 0.5) / (0.5 + eps), rtol=1e-12)
