"""From facts to targets: KL in the reward, corrections, masks and figures, by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import CPU, Toy

from learner.algorithms import build
from learner.batch import Rows, Targets, collate, read_rows
from learner.config import AlgorithmConfig, LearnerConfig
from learner.credit import Looked, assign, explained_variance
from learner.memory import Architecture, activations, frozen, states
from rollout import ScoredGroup
from rollout.schema import to_table


def rows_of(scored: list[ScoredGroup], **options: Any) -> Rows:
    return read_rows(to_table(scored, step=0, run="t", temperature=1.0), **options)


def assigned(
    rows: Rows, looked: Looked, coef: float = 0.0, **options: Any
) -> tuple[Targets, dict[str, float]]:
    config = AlgorithmConfig.model_validate(options)
    return assign(rows, looked, algorithm=build(config), config=config, kl_coef=coef)


TWO = [group(0, (0.0, 1.0), lengths=(2, 3))]


def toy(**options: Any) -> Toy:
    return Toy(LearnerConfig.model_validate({"algorithm": {"name": "grpo", **options}}))


def off_by(rows: Rows, gaps: list[list[float]]) -> np.ndarray:
    """Logprobs that differ from the sampler's by these gaps."""
    array = rows.behaviour_NT.copy()
    for row, gap in enumerate(gaps):
        array[row, : len(gap)] += np.array(gap, dtype=np.float32)
    return array


def test_kl_is_taken_from_the_reward():
    """k1 of 0.5 per token of the first row, 0 of the second: its reward is 1.5 lower, at 1.5."""
    rows = rows_of(TWO)
    reference = off_by(rows, [[-0.5, -0.5], [0.0, 0.0, 0.0]])
    kl = {"coef": 1.5, "estimator": "k1"}
    found = {}
    for placement in ("loss", "reward", "reward_at_end"):
        targets, metrics = assigned(
            rows, Looked(reference=reference), 1.5, scale="none", kl={**kl, "placement": placement}
        )
        found[placement] = targets.advantage[:, 0]
        assert (metrics.get("policy/kl_reference") is None) == (placement == "loss")
    # rewards 0 and 1, or 0 - 1.5 * (0.5 + 0.5) = -1.5 and 1
    np.testing.assert_allclose(found["loss"], [-0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["reward"], [-1.25, 1.25], atol=1e-6)
    np.testing.assert_allclose(found["reward_at_end"], [-1.25, 1.25], atol=1e-6)
    assert metrics["policy/kl_reference"] == pytest.approx(1.0 / 5)


def test_with_credit_per_token_it_matters_where_the_kl_is_paid():
    """Returns with gamma 1, before whitening moves them: compare differences along a row."""
    rows = rows_of(TWO)
    reference = off_by(rows, [[-0.5, -0.5], [0.0, 0.0, 0.0]])
    along = {}
    for placement in ("reward", "reward_at_end"):
        kl = {"coef": 1.0, "estimator": "k1", "placement": placement}
        targets, _ = assigned(rows, Looked(reference=reference), 1.0, name="reinforce++", kl=kl)
        along[placement] = targets.advantage[0, 0] - targets.advantage[0, 1]
    assert along["reward_at_end"] == pytest.approx(0.0, abs=1e-6)
    assert along["reward"] < -0.1, "the first token still has its own KL to pay"


def test_dropped_tokens_leave_the_denominators_unless_asked_to_stay():
    rows = rows_of(TWO)
    looked = Looked(anchor=off_by(rows, [[np.log(3.0), 0.0], [0.0, 0.0, np.log(0.5)]]))
    correction = {"kind": "token_mask", "low": 0.9, "high": 2.0}
    options = {"anchor": "recomputed"}
    targets, metrics = assigned(rows, looked, correction=correction, **options)
    assert targets.trains.tolist() == [[False, True, False], [True, True, False]]
    np.testing.assert_allclose(targets.weight, [[0, 1, 1], [1, 1, 0]], atol=1e-6)
    assert metrics["learner/dropped_tokens"] == 2
    stay = {**correction, "counts_dropped": True}
    targets, _ = assigned(rows, looked, correction=stay, **options)
    assert targets.trains.tolist() == [[True, True, False], [True, True, True]]
    np.testing.assert_allclose(targets.weight, [[0, 1, 1], [1, 1, 0]], atol=1e-6)
    counts = targets.counts(np.arange(2), max_tokens=9)
    assert (counts.tokens, counts.sequences, counts.max_tokens) == (5, 2, 9)


@pytest.mark.parametrize("kind", ["none", "token_mask", "token_truncate"])
def test_the_gap_of_the_engines_is_logged_whether_or_not_it_is_corrected(kind: str):
    rows = rows_of(TWO)
    looked = Looked(anchor=off_by(rows, [[np.log(3.0), 0.0], [0.0, 0.0, np.log(0.5)]]))
    _, metrics = assigned(
        rows, looked, anchor="recomputed", correction={"kind": kind, "low": 0.6, "high": 2.0}
    )
    ratios = np.array([3.0, 1.0, 1.0, 1.0, 0.5])
    assert metrics["policy/importance_mean"] == pytest.approx(ratios.mean())
    assert metrics["policy/importance_max"] == pytest.approx(3.0)
    expected = ratios.sum() ** 2 / (5 * (ratios**2).sum())
    assert metrics["policy/importance_ess"] == pytest.approx(expected)
    assert metrics["policy/importance_capped"] == pytest.approx(2 / 5)


def test_a_truncated_completion_counts_and_does_not_train():
    whole = group(0, (0.0, 1.0), lengths=(2, 3))
    first, second = whole.group.completions
    cut = replace(first, finish_reason="length")
    scored = [replace(whole, group=replace(whole.group, completions=(cut, second)))]
    rows = rows_of(scored, mask_truncated=True)
    targets, _ = assigned(rows, Looked(), scale="none", mask_truncated=True)
    assert not targets.trains[0].any() and not targets.advantage[0].any()
    np.testing.assert_allclose(targets.advantage[1], 0.5, atol=1e-6)


def test_the_critics_targets_are_advantage_and_value():
    rows = rows_of(TWO)
    value = np.full(rows.mask_NT.shape, 0.25, dtype=np.float32)
    targets, metrics = assigned(rows, Looked(value=value), name="ppo", lam=1.0)
    np.testing.assert_allclose(targets.returns, [[0, 0, 0], [1, 1, 1]], atol=1e-6)
    assert metrics["critic/explained_variance"] == pytest.approx(0.0)
    trained = targets.advantage[rows.trains_NT]
    assert abs(trained.mean()) < 1e-6 and trained.std(ddof=1) == pytest.approx(1.0)


def test_the_terms_of_the_loss_add_up():
    """KL, its importance form and the entropy bonus, against the same loss without them."""
    kl = {"coef": 0.5, "estimator": "k3"}
    toys = {
        "plain": toy(),
        "kl": toy(kl=kl),
        "importance": toy(kl={**kl, "importance": True}),
        "entropy": toy(entropy={"coef": 0.25}),
    }
    plain = toys["plain"]
    table = to_table(
        [plain.behave(group(t, (0.0, 1.0, 0.5), lengths=(6, 2, 4))) for t in range(3)],
        step=0,
        run="t",
        temperature=1.0,
    )
    loss = {name: float(next(t.losses(table)).detach()) for name, t in toys.items()}
    rows = read_rows(table)
    batch = collate(rows, rows.mask_NT, np.arange(9), CPU)
    logp_BT, entropy_BT = (x.detach() for x in plain.said(batch, plain.weights))
    away_BT = plain.said(batch, plain.reference)[0] - logp_BT
    kl_BT = away_BT.exp() - away_BT - 1
    ratio_BT = (logp_BT - batch.gather(rows.behaviour_NT)).exp()
    mask_BT = batch.trains_BT.double()
    weight_BT = mask_BT / mask_BT.sum(1, keepdim=True) / 9
    expected = {
        "kl": 0.5 * (weight_BT * kl_BT).sum(),
        "importance": 0.5 * (weight_BT * kl_BT * ratio_BT).sum(),
        "entropy": -0.25 * (weight_BT * entropy_BT).sum(),
    }
    for name, term in expected.items():
        assert loss[name] - loss["plain"] == pytest.approx(float(term), abs=1e-6), name
    assert abs(expected["kl"] - expected["importance"]) > 1e-5


def test_explained_variance():
    returns = np.array([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns * 0 + 5, returns) == 0.0
    assert explained_variance(-returns, returns) < 0
    assert explained_variance(returns, returns * 0) == 0.0


# -- the memory formula ---------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 10**10), st.integers(1, 512))
def test_zero_shards_what_it_says(parameters: int, ranks: int):
    """In bfloat16: 2 + 2 + 12 bytes per parameter (arXiv 1910.02054, figure 1)."""
    whole = {"weights": 2 * parameters, "gradients": 2 * parameters, "optimizer": 12 * parameters}
    sharded = {0: [], 1: ["optimizer"], 2: ["optimizer", "gradients"], 3: list(whole)}
    for stage, names in sharded.items():
        found = states(parameters, ranks=ranks, stage=stage, width=2)
        for name, value in whole.items():
            assert found[name] == pytest.approx(value / (ranks if name in names else 1))
    assert frozen(parameters, ranks=ranks, sharded=True, width=2) * ranks == pytest.approx(
        frozen(parameters, ranks=ranks, sharded=False, width=2)
    )


def test_checkpointing_keeps_less():
    shape = Architecture(
        parameters=7_616_000_000, layers=28, hidden=3584, intermediate=18_944, kv=512,
        vocabulary=152_064,
    )  # fmt: skip
    given = {"width": 2, "logits": 1 << 24}
    full = activations(shape, 8192, checkpointing=False, **given)
    assert activations(shape, 8192, checkpointing=True, **given) < full / 10
