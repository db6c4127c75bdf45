"""Advantages, surrogates, reductions: numbers worked out by hand, and their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import algorithms, objectives
from learner.advantages import group_norm
from learner.config import AlgorithmConfig, OptimConfig
from learner.learner import learning_rate


def norm(*groups: list[float]) -> np.ndarray:
    ids = np.concatenate([np.full(len(g), i) for i, g in enumerate(groups)])
    return group_norm(np.concatenate(groups), ids)


def test_group_norm_by_hand():
    # mean 1, deviations -1 0 1, std with ddof 1 is 1
    np.testing.assert_allclose(norm([0.0, 1.0, 2.0]), [-1, 0, 1], atol=2e-6)
    std = math.sqrt(3 * 0.25**2 + 0.75**2) / math.sqrt(3)
    np.testing.assert_allclose(
        norm([1.0, 0.0, 0.0, 0.0]), np.array([0.75, -0.25, -0.25, -0.25]) / (std + 1e-6)
    )


@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9, 1.2])
@pytest.mark.parametrize("size", [7, 8, 16])
def test_equal_rewards_give_exactly_nothing(reward: float, size: int):
    assert not norm([reward] * size).any()


def test_a_group_with_fewer_than_two_scored_rows_gives_nothing():
    assert not norm([1.0]).any()
    assert not norm([1.0, math.nan, math.nan]).any()
    mixed = norm([1.0, math.nan, 0.0])
    np.testing.assert_allclose(mixed, [math.sqrt(0.5), 0, -math.sqrt(0.5)], atol=2e-6)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=9), min_size=1, max_size=6))
def test_advantages_of_a_group_add_up_to_nothing_and_order_does_not_matter(groups):
    ids = np.concatenate([np.full(len(g), i) for i, g in enumerate(groups)])
    rewards = np.concatenate(groups)
    advantages = group_norm(rewards, ids)
    for group in range(len(groups)):
        assert abs(advantages[ids == group].sum()) < 1e-6
    order = np.random.default_rng(0).permutation(len(rewards))
    np.testing.assert_allclose(group_norm(rewards[order], ids[order]), advantages[order], atol=1e-9)


def test_clipping_by_hand():
    logp = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]]))
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, clipped = objectives.clipped(logp, torch.zeros(1, 4), advantage, (0.2, 0.28))
    torch.testing.assert_close(loss, torch.tensor([[-1.28, 1.5, -0.5, 0.8]]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_on_policy_the_gradient_is_reinforce():
    logp = torch.randn(3, 5, requires_grad=True)
    advantage = torch.randn(3, 1)
    loss, _ = objectives.clipped(logp, logp.detach(), advantage, (0.2, 0.2))
    (ours,) = torch.autograd.grad(loss.sum(), logp)
    (reinforce,) = torch.autograd.grad(-(logp * advantage).sum(), logp)
    torch.testing.assert_close(ours, reinforce)


def test_the_ratio_is_bounded():
    far = objectives.ratio(torch.tensor([1000.0, -1000.0]), torch.zeros(2))
    assert torch.isfinite(far).all()
    assert far[0].item() == pytest.approx(math.exp(20.0))


def test_k3_is_unbiased_for_the_kl_and_never_negative():
    torch.manual_seed(0)
    policy, reference = (torch.randn(50) / 2).log_softmax(0), (torch.randn(50) / 2).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    estimate = (policy.exp() * objectives.k3(policy, reference)).sum()
    torch.testing.assert_close(estimate, exact, atol=1e-5, rtol=1e-4)
    assert (objectives.k3(policy, reference) >= 0).all()
    assert objectives.k3(policy, policy).abs().max() == 0


def test_reductions_by_hand():
    trains = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    values = torch.tensor([[1.0, 2, 3, 99], [5, 99, 99, 99]])
    tokens = (values * objectives.token_mean(trains, 4, 2)).sum()
    sequences = (values * objectives.sequence_mean(trains, 4, 2)).sum()
    assert tokens.item() == pytest.approx((1 + 2 + 3 + 5) / 4)
    assert sequences.item() == pytest.approx((2 + 5) / 2)


def test_a_recipe_may_override_a_row():
    row = algorithms.build(AlgorithmConfig(clip_high=0.28, reduction="token_mean"))
    assert row.clip == (0.2, 0.28)
    assert row.reduction is objectives.token_mean
    assert algorithms.build(AlgorithmConfig()).reduction is objectives.sequence_mean


def test_the_learning_rate_rises_and_falls():
    config = OptimConfig(lr=1.0, warmup_steps=2, final_lr_fraction=0.1)
    rates = [learning_rate(config, step=s, steps=12) for s in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    constant = OptimConfig(lr=1.0)
    assert {learning_rate(constant, step=s, steps=5) for s in range(9)} == {1.0}
