"""The contract: loss and gradient depend on the table, never on how the work was split.

Property tests on the real credit, plan and loss around a model of one matrix; the same on real
DeepSpeed ranks is in test_learner.py.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import completion, group, judged
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import CPU, Toy

from learner import objectives
from learner.algorithms import ALGORITHMS
from learner.batch import collate, read_rows
from learner.config import LearnerConfig
from rewards import Score
from rollout import ScoredGroup
from rollout.schema import to_table

REWARDS = (0.0, 0.1, 0.2, 0.7, 0.9, 1.0, None)
OPTIONS: dict[str, dict[str, Any]] = {
    "stale": {"kl": {"coef": 0.1, "importance": True}, "entropy": {"coef": 0.01}},
    "recomputed": {
        "anchor": "recomputed",
        "correction": {"kind": "token_mask", "low": 0.8, "high": 1.25},
        "kl": {"coef": 0.1, "estimator": "k2"},
    },
    "KL in the reward": {"kl": {"coef": 0.1, "placement": "reward", "estimator": "k1"}},
}
"""Sets of options; in the first and the last the ratios are far from 1, so clips act."""


def options_of(name: str, chosen: str) -> dict[str, Any]:
    if name == "sft":
        return {}
    if name == "grpo_process" and chosen == "KL in the reward":
        return {}
    return OPTIONS[chosen]


def config(name: str, **options: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"algorithm": {"name": name, **options}})


@st.composite
def groups(draw: st.DrawFn) -> list[ScoredGroup]:
    """One to five groups of one to five ragged completions, some of which could not be scored."""
    found = []
    for ticket in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 5))
        rewards = draw(st.lists(st.sampled_from(REWARDS), min_size=size, max_size=size))
        lengths = draw(st.lists(st.integers(1, 12), min_size=size, max_size=size))
        scored = group(ticket, tuple(rewards), lengths=tuple(lengths))
        found.append(judged(scored, greedy=draw(st.sampled_from((0.0, 0.3))), seed=ticket))
    return found


def table(scored: list[ScoredGroup]):
    return to_table(scored, step=0, run="t", temperature=1.0)


def same(first: np.ndarray, second: np.ndarray, what: str) -> None:
    scale = max(1.0, float(np.abs(first).max()))
    np.testing.assert_allclose(second / scale, first / scale, atol=1e-6, rtol=0, err_msg=what)


@pytest.mark.parametrize("name", ALGORITHMS)
@settings(max_examples=12, deadline=None)
@given(
    scored=groups(),
    chosen=st.sampled_from(list(OPTIONS)),
    ranks=st.sampled_from((2, 4)),
    budget=st.integers(8, 120),
    data=st.data(),
)
def test_the_gradient_does_not_depend_on_how_the_work_is_split(
    name: str,
    scored: list[ScoredGroup],
    chosen: str,
    ranks: int,
    budget: int,
    data: st.DataObject,
):
    toy = Toy(config(name, **options_of(name, chosen)))
    scored = [toy.behave(g) for g in scored]
    whole = toy.gradient(table(scored))
    assert np.isfinite(whole).all()
    same(whole, toy.gradient(table(scored), ranks=ranks), f"{ranks} ranks")
    same(whole, toy.gradient(table(scored), budget=budget), f"micro-batches of {budget} tokens")
    same(whole, toy.gradient(table(scored), ranks=ranks, budget=budget), "both")
    order = data.draw(st.permutations(scored))
    same(whole, toy.gradient(table(order)), "another order of groups")
    shuffled = table(scored)
    rows = data.draw(st.permutations(range(len(shuffled))))
    same(whole, toy.gradient(shuffled.take(rows)), "another order of rows")


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "sft"])
@settings(max_examples=8, deadline=None)
@given(
    scored=groups(),
    chosen=st.sampled_from(list(OPTIONS)),
    at=st.integers(0, 4),
    length=st.integers(1, 40),
    nan=st.booleans(),
)
def test_a_row_that_cannot_be_trained_changes_nothing(
    name: str, scored: list[ScoredGroup], chosen: str, at: int, length: int, nan: bool
):
    """Without a reward, or with a logprob that is not finite: as if it were not there."""
    toy = Toy(config(name, **options_of(name, chosen)))
    scored = [toy.behave(g) for g in scored]
    without = toy.gradient(table(scored))
    host = scored[at % len(scored)]
    worse = completion(length, seed=99)
    broken = Score(reward=None, parts={}, outcome="unscorable", note="broke")
    broken = Score(reward=1.0, parts={}) if nan else broken
    grown = replace(
        host,
        group=replace(host.group, completions=(*host.group.completions, worse)),
        scores=(*host.scores, broken),
        steps=(*host.steps, ((length, 0.5),)),
    )
    changed = table([grown if g is host else g for g in scored])
    if nan:
        column = changed.schema.get_field_index("behaviour_logprobs")
        values = changed["behaviour_logprobs"].to_pylist()
        row = sum(len(g.group.completions) for g in scored[: at % len(scored)])
        row += len(host.group.completions)
        values[row][0] = float("nan")
        field = changed.schema.field(column)
        import pyarrow as pa

        changed = changed.set_column(column, field, pa.array(values, type=field.type))
    same(without, toy.gradient(changed), "the row was trained on, or counted")


SURROGATES = [n for n in ALGORITHMS if n not in ("sft", "sapo")]


@pytest.mark.parametrize("name", SURROGATES)
def test_at_ratio_1_the_gradient_is_reinforces(name: str):
    """SAPO's gate has the slope 1 there as well, by another formula; see below."""
    row = ALGORITHMS[name]
    torch.manual_seed(0)
    logp = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0] * 5, [1.0] * 2 + [0.0] * 3, [1.0] * 4 + [0.0]]).double()
    advantage = torch.randn(3, 1, dtype=torch.float64).expand(3, 5)
    settings = {k: v for k, v in row.settings.items() if k in ("clip_low", "clip_high", "level")}
    loss, _ = row.surrogate(logp, logp.detach(), advantage, mask, **settings)
    # What counts for a whole sequence stands on each of its tokens: their mean is taken.
    whole = settings.get("level") in ("sequence", "product") or name == "gmpo"
    weight = mask / mask.sum(1, keepdim=True) if whole else mask
    (ours,) = torch.autograd.grad((loss * weight).sum(), logp)
    lengths = mask.sum(1, keepdim=True)
    per_token = mask / lengths if settings.get("level") == "sequence" or name == "gmpo" else mask
    torch.testing.assert_close(ours, -advantage * per_token)


def test_at_ratio_1_sapo_is_reinforce():
    logp = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(3, 5, dtype=torch.float64)
    loss, _ = objectives.sigmoid_gated(logp, logp.detach(), advantage, torch.ones(3, 5))
    (ours,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(ours, -advantage)


def test_these_properties_are_asked_where_clips_act():
    toy = Toy(config("grpo"))
    scored = [toy.behave(group(t, (0.0, 1.0, 0.5), lengths=(6, 9, 4))) for t in range(4)]
    rows = read_rows(table(scored))
    batch = collate(rows, rows.mask_NT, np.arange(12), CPU)
    ratio = objectives.ratio(
        toy.said(batch, toy.weights)[0].detach(), batch.gather(rows.behaviour_NT)
    )[batch.trains_BT]
    assert (ratio > 1.2).double().mean() > 0.1 and (ratio < 0.8).double().mean() > 0.1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_gspo_is_grpo_at_length_1(seed: int):
    torch.manual_seed(seed)
    logp, anchor, advantage = torch.randn(3, 6, 1, dtype=torch.float64).unbind(0)
    logp = logp.clone().requires_grad_(True)
    mask = torch.ones(6, 1)
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    grpo = objectives.clipped(logp, anchor, advantage, mask, **clip)
    for level in ("sequence", "sequence_token", "product"):
        gspo = objectives.clipped(logp, anchor, advantage, mask, **clip, level=level)
        torch.testing.assert_close(gspo[0], grpo[0])
        assert gspo[1].equal(grpo[1])
        gradients = [torch.autograd.grad(x[0].sum(), logp, retain_graph=True) for x in (grpo, gspo)]
        torch.testing.assert_close(*gradients)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_the_two_forms_of_gspo_have_one_gradient(seed: int):
    """With one advantage per sequence (arXiv 2507.18071, section 4.3)."""
    torch.manual_seed(seed)
    logp = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    anchor = logp.detach() + torch.randn(4, 6) / 4
    mask = (torch.rand(4, 6) < 0.8).double()
    advantage = torch.randn(4, 1, dtype=torch.float64).expand(4, 6)
    weight = objectives.sequence_mean(mask, objectives.Counts(1, 4))
    found = []
    for level in ("sequence", "sequence_token"):
        loss, _ = objectives.clipped(
            logp, anchor, advantage, mask, clip_low=0.05, clip_high=0.05, level=level
        )
        found.append(torch.autograd.grad((loss * weight).sum(), logp)[0])
    torch.testing.assert_close(found[0], found[1])


def test_cispos_gradient_is_never_zero_where_the_advantage_is_not():
    logp = torch.tensor([[3.0, -3.0, 0.0]], requires_grad=True)
    for cap in ("one_plus_eps", "absolute_cap"):
        loss, clipped = objectives.detached(
            logp,
            torch.zeros(1, 3),
            torch.ones(1, 3),
            torch.ones(1, 3),
            clip_low=0.2,
            clip_high=0.28 if cap == "one_plus_eps" else 1.28,
            cap=cap,
        )
        (found,) = torch.autograd.grad(loss.sum(), logp)
        assert (found != 0).all()
        assert clipped.tolist() == [[True, cap == "one_plus_eps", False]]
