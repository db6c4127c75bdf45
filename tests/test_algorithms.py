"""Advantages, surrogates, reductions: numbers worked out by hand, and their properties."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import advantages, objectives
from learner.advantages import Evidence, group_relative, leave_one_out
from learner.algorithms import ALGORITHMS, SETTINGS, build
from learner.config import AlgorithmConfig, CriticConfig, LearnerConfig, OptimConfig
from learner.learner import learning_rate
from learner.objectives import Counts
from learner.presets import PRESETS
from learner.rules import contradictions
from learner.steering import Steering

ONES = torch.ones(1, 4)


def evidence(*groups: list[float], **given: Any) -> Evidence:
    ids = np.concatenate([np.full(len(g), i) for i, g in enumerate(groups)])
    rewards = np.concatenate(groups)
    given.setdefault("mask_NT", np.ones((len(rewards), 3), dtype=bool))
    return Evidence(rewards_N=rewards, groups_N=ids, **given)


def norm(*groups: list[float]) -> np.ndarray:
    return group_relative(evidence(*groups))


def test_group_relative_by_hand():
    # mean 1, deviations -1 0 1, std with ddof 1 is 1
    np.testing.assert_allclose(norm([0.0, 1.0, 2.0]), [-1, 0, 1], atol=2e-6)
    std = math.sqrt(3 * 0.25**2 + 0.75**2) / math.sqrt(3)
    np.testing.assert_allclose(
        norm([1.0, 0.0, 0.0, 0.0]), np.array([0.75, -0.25, -0.25, -0.25]) / (std + 1e-6)
    )


def test_the_scale_may_be_the_tables_or_none():
    two = evidence([0.0, 1.0], [0.0, 3.0])
    np.testing.assert_allclose(group_relative(two, scale="none"), [-0.5, 0.5, -1.5, 1.5])
    std = np.array([0.0, 1.0, 0.0, 3.0]).std(ddof=1)
    np.testing.assert_allclose(
        group_relative(two, scale="batch", eps=1e-4),
        np.array([-0.5, 0.5, -1.5, 1.5]) / (std + 1e-4),
    )


def test_a_completion_is_compared_with_its_round_and_those_before():
    grown = evidence([0.0, 0.0, 1.0, 0.0], rounds_N=np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(group_relative(grown, scale="none"), [0, 0, 0.75, -0.25])
    np.testing.assert_allclose(leave_one_out(grown), [0, 0, 1, -1 / 3])
    std = np.array([0.0, 0.0, 1.0, 0.0]).std(ddof=1)
    np.testing.assert_allclose(group_relative(grown), np.array([0, 0, 0.75, -0.25]) / (std + 1e-6))


PROBABILITIES, REWARDS = np.array([0.15, 0.25, 0.6]), np.array([0.0, 0.3, 1.0])
"""A policy of three completions."""


def grown_groups(size: int, most: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every group that may come about, and how probable it is."""
    going = [(1.0, ())]
    while going:
        chance, sampled = going.pop()
        for round_ in itertools.product(range(3), repeat=size):
            now, group = chance * PROBABILITIES[list(round_)].prod(), (*sampled, *round_)
            if len({REWARDS[i] for i in group}) == 1 and len(group) < most:
                going.append((now, group))
            else:
                yield now, group


def mean_gradient(
    advantage: Callable[[Evidence], np.ndarray], size: int, most: int, *, told: bool = True
) -> np.ndarray:
    """The expectation of sum(advantage * d log p / d logits), exactly."""
    total = np.zeros(3)
    for chance, group in grown_groups(size, most):
        rounds = np.arange(len(group)) // size if told else None
        credit = advantage(evidence(REWARDS[list(group)].tolist(), rounds_N=rounds))
        total += chance * credit @ (np.eye(3)[list(group)] - PROBABILITIES)
    return total


@pytest.mark.parametrize("name", ["leave_one_out", "centred"])
def test_groups_that_grow_until_rewards_differ_bend_no_gradient(name: str):
    """Its expectation is the reward's gradient, times a number. It is not when a baseline knows of
    the rounds that came later."""
    reward_gradient = PROBABILITIES * (REWARDS - PROBABILITIES @ REWARDS)
    direction = reward_gradient / np.linalg.norm(reward_gradient)
    for size, most in ((2, 6), (3, 6), (4, 4)):
        found = mean_gradient(GROUP_BASELINES[name], size, most)
        assert found @ direction > 0
        np.testing.assert_allclose(found / np.linalg.norm(found), direction, atol=1e-12)
    bent = mean_gradient(GROUP_BASELINES[name], 2, 6, told=False)
    assert abs(bent / np.linalg.norm(bent) - direction).max() > 0.01


def test_a_growing_group_weighs_its_prompt_by_the_rounds_it_got():
    """Wald's identity: the mean of the sum over rounds is the mean of one, times how many."""
    rounds = sum(chance * len(group) / 2 for chance, group in grown_groups(2, 6))
    fixed = mean_gradient(leave_one_out, 2, 2)
    np.testing.assert_allclose(mean_gradient(leave_one_out, 2, 6), rounds * fixed, atol=1e-12)


GROUP_BASELINES = {
    "group_relative": group_relative,
    "batch": lambda e: group_relative(e, scale="batch"),
    "centred": lambda e: group_relative(e, scale="none"),
    "leave_one_out": leave_one_out,
    "reinforce++_baseline": advantages.whitened_group_baseline,
}


@pytest.mark.parametrize("name", GROUP_BASELINES)
@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9, 1.2])
@pytest.mark.parametrize("size", [7, 8, 16])
def test_equal_rewards_give_exactly_nothing(name: str, reward: float, size: int):
    assert not GROUP_BASELINES[name](evidence([reward] * size)).any()
    assert not GROUP_BASELINES[name](evidence([reward] * size, [0.0, 1.0, 1.0]))[:size].any()


@pytest.mark.parametrize("name", GROUP_BASELINES)
def test_a_group_with_fewer_than_two_scored_rows_gives_nothing(name: str):
    advantage = GROUP_BASELINES[name]
    assert not advantage(evidence([1.0])).any()
    assert not advantage(evidence([1.0, math.nan, math.nan])).any()
    assert not advantage(evidence([math.nan, math.nan])).any()
    beside = advantage(evidence([1.0], [0.9, math.nan], [0.0, 1.0, 1.0]))
    assert not beside[:3].any() and beside[3:].any()


def test_an_unscorable_row_plays_no_part():
    mixed = norm([1.0, math.nan, 0.0])
    np.testing.assert_allclose(mixed, [math.sqrt(0.5), 0, -math.sqrt(0.5)], atol=2e-6)


ragged = st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(deadline=None)
@given(ragged)
def test_advantages_of_a_group_add_up_to_nothing_and_order_does_not_matter(groups):
    given = evidence(*groups)
    found = group_relative(given)
    for group in range(len(groups)):
        assert abs(found[given.groups_N == group].sum()) < 1e-6
    order = np.random.default_rng(0).permutation(len(found))
    again = Evidence(rewards_N=given.rewards_N[order], groups_N=given.groups_N[order])
    np.testing.assert_allclose(group_relative(again), found[order], atol=1e-9)


@settings(deadline=None)
@given(ragged)
def test_leave_one_out_is_centred_times_g_over_g_minus_1(groups):
    given = evidence(*groups)
    sizes = np.concatenate([np.full(len(g), len(g)) for g in groups])
    expected = group_relative(given, scale="none") * sizes / np.maximum(sizes - 1, 1)
    np.testing.assert_allclose(leave_one_out(given), expected, atol=1e-9)


def test_remax_by_hand():
    given = evidence([1.0, 0.0], greedy_N=np.array([0.25, 0.25]))
    np.testing.assert_allclose(advantages.minus_greedy(given), [0.75, -0.25])
    unscored = evidence([1.0, 0.0], greedy_N=np.array([math.nan, math.nan]))
    assert not advantages.minus_greedy(unscored).any()


def test_returns_and_gae_by_hand():
    """Two tokens and a hole between them, which is passed over."""
    mask = np.array([[True, False, True]])
    given = evidence([2.0], mask_NT=mask, values_NT=np.array([[0.5, 99.0, 1.0]]))
    np.testing.assert_allclose(
        advantages.discounted(given.token_rewards_NT, mask, 0.5), [[1, 0, 2]]
    )
    # delta of the last token 2 - 1 = 1, of the first 0 + 0.5 * 1 - 0.5 = 0; and 0.5 * 0.5 * 1
    np.testing.assert_allclose(advantages.gae(given, gamma=0.5, lam=0.5), [[0.25, 0, 1.0]])


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_gae_with_lambda_1_is_the_return_less_the_value(seed: int):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 6)) < 0.7
    given = evidence(
        [*rng.random(4)], mask_NT=mask, values_NT=rng.random((4, 6)), extra_NT=rng.random((4, 6))
    )
    returns = advantages.discounted(given.token_rewards_NT, mask, 0.9)
    expected = np.where(mask, returns - given.values_NT, 0)
    np.testing.assert_allclose(advantages.gae(given, gamma=0.9, lam=1.0), expected, atol=1e-12)


def test_process_supervision_by_hand():
    """Steps of 1 and 0 in one completion, 0 and 1 in the other: mean 1/2, std 1/sqrt(3)."""
    steps = np.array([[1.0, math.nan, 0.0], [0.0, math.nan, 1.0]])
    found = advantages.process(evidence([0.5, 0.5], steps_NT=steps))
    one = 0.5 / (1 / math.sqrt(3) + 1e-6)
    # The first token is credited with both steps, the others with the one that follows them.
    np.testing.assert_allclose(found, [[0, -one, -one], [0, one, one]], atol=1e-12)
    plain = np.array([[math.nan, math.nan, math.nan], [1.0, math.nan, 1.0]])
    # Without judged steps the reward is the one step, at the end: 0.5, 1, 1.
    found = advantages.process(evidence([0.5, 1.0], steps_NT=plain))
    assert found[0].max() == found[0].min() < 0 < found[1, 2] < found[1, 0]
    equal = np.array([[0.7, math.nan, 0.7], [0.7, math.nan, 0.7]])
    assert not advantages.process(evidence([0.7, 0.7], steps_NT=equal)).any()


def test_clipping_by_hand():
    logp = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]]))
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    loss, clipped = objectives.clipped(logp, torch.zeros(1, 4), advantage, ONES, **clip)
    torch.testing.assert_close(loss, torch.tensor([[-1.28, 1.5, -0.5, 0.8]]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_the_dual_clip_bounds_what_a_bad_sample_costs():
    logp = torch.log(torch.tensor([[1.5, 5.0, 5.0, 0.5]]))
    advantage = torch.tensor([[-1.0, -1.0, 1.0, -1.0]])
    clip = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    loss, clipped = objectives.clipped(logp, torch.zeros(1, 4), advantage, ONES, **clip)
    torch.testing.assert_close(loss, torch.tensor([[1.5, 3.0, -1.2, 0.8]]))
    assert clipped.tolist() == [[False, True, True, True]]


def test_the_ratio_is_bounded():
    far = objectives.ratio(torch.tensor([1000.0, -1000.0]), torch.zeros(2))
    assert torch.isfinite(far).all()
    assert far[0].item() == pytest.approx(math.exp(20.0))


def test_k3_is_unbiased_for_the_kl_and_never_negative():
    torch.manual_seed(0)
    policy, reference = (torch.randn(50) / 2).log_softmax(0), (torch.randn(50) / 2).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    estimate = (policy.exp() * objectives.kl(policy, reference)).sum()
    torch.testing.assert_close(estimate, exact, atol=1e-5, rtol=1e-4)
    assert (objectives.kl(policy, reference) >= 0).all()
    assert objectives.kl(policy, policy).abs().max() == 0


def test_the_plus_estimators_have_the_gradient_of_the_kl():
    """In expectation under the policy; k1's own is 0 and k3's is that of the other direction."""
    torch.manual_seed(0)
    logits = (torch.randn(30, dtype=torch.float64) / 2).requires_grad_(True)
    reference = (torch.randn(30, dtype=torch.float64) / 2).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)

    def expected_gradient(estimator: str) -> torch.Tensor:
        estimate = objectives.kl(policy, reference, estimator=estimator)
        value = (policy.exp().detach() * estimate).sum()
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    for estimator in ("k2", "k1+", "k3+", "abs+"):
        torch.testing.assert_close(expected_gradient(estimator), wanted)
    assert expected_gradient("k1").abs().max() < 1e-12
    assert (expected_gradient("k3") - wanted).abs().max() > 1e-3


def test_reductions_by_hand():
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    values = torch.tensor([[1.0, 2, 3, 99], [5, 99, 99, 99]])
    counts = Counts(tokens=4, sequences=2, max_tokens=10)
    found = {
        reduction.__name__: float((values * reduction(mask, counts)).sum())
        for reduction in (
            objectives.token_mean,
            objectives.sequence_mean,
            objectives.sequence_sum,
            objectives.constant_length,
        )
    }
    assert found == pytest.approx(
        {
            "token_mean": (1 + 2 + 3 + 5) / 4,
            "sequence_mean": (2 + 5) / 2,
            "sequence_sum": (6 + 5) / 2,
            "constant_length": (6 + 5) / 20,
        }
    )


def test_corrections_by_hand():
    gap = torch.log(torch.tensor([[0.5, 4.0, 1.0, 1.0], [1.1, 1.0, 1.0, 1.0]]))
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]])

    def found(kind: str, low: float | None, high: float | None) -> list[list[float]]:
        weight, keep, _ = objectives.correction(gap, mask, kind=kind, low=low, high=high)
        return [[round(x, 4) for x in row] for row in (weight * keep).tolist()]

    assert found("none", 0.9, 2.0) == [[1.0] * 4, [1.0] * 4]
    assert found("token_truncate", None, 2.0) == [[0.5, 2.0, 1.0, 1.0], [1.1, 1.0, 1.0, 1.0]]
    assert found("token_mask", 0.9, 2.0) == [[0.0, 0.0, 1.0, 1.0], [1.1, 1.0, 1.0, 1.0]]
    assert found("sequence_truncate", None, 1.5) == [[1.5] * 4, [1.1] * 4]
    assert found("sequence_mask", None, 1.5) == [[0.0] * 4, [1.1] * 4]
    assert found("geometric", None, 1.2) == [[0.0] * 4, [1.0] * 4]  # 2^(1/3) and 1.1^(1/4)


def test_the_value_loss_by_hand():
    value, old, returns = (
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[0.0, 0.9]]),
        torch.tensor([2.0]),
    )
    loss, clipped = objectives.value_loss(value, old, returns, clip=0.2)
    # the first moved by 1 and is held at 0.2: (2 - 0.2)^2 / 2; the second moved by 0.1
    torch.testing.assert_close(loss, torch.tensor([[1.62, 0.5]]))
    assert clipped.tolist() == [[True, False]]
    assert objectives.value_loss(value, old, returns, clip=None)[0].tolist() == [[0.5, 0.5]]


def test_the_kl_coefficient_is_steered_to_its_target():
    kl = {"coef": 0.1, "target": 0.02, "horizon": 100}
    steering = Steering(AlgorithmConfig.model_validate({"kl": kl}))
    steering.move({"policy/kl_reference": 0.2}, completions=50)  # far above: the error is capped
    assert steering.kl_coef == pytest.approx(0.1 * (1 + 0.2 * 50 / 100))
    before = steering.kl_coef
    steering.move({"policy/kl_reference": 0.018}, completions=50)
    assert steering.kl_coef == pytest.approx(before * (1 - 0.1 * 50 / 100))


def test_the_entropy_coefficient_rises_below_the_floor_and_falls_back():
    entropy = {"coef": 0.01, "floor": 0.5, "step": 0.02, "limit": 0.04}
    steering = Steering(AlgorithmConfig.model_validate({"entropy": entropy}))
    found = []
    for measured in (0.4, 0.4, 0.4, 0.6, 0.6, 0.6):
        found.append(steering.move({"policy/entropy": measured}, completions=1))
    coefs = [f["policy/entropy_coef"] for f in found]
    assert coefs == pytest.approx([0.03, 0.04, 0.04, 0.02, 0.01, 0.01])


def test_a_recipe_may_override_a_row():
    row = build(AlgorithmConfig(clip_high=0.28, reduction="token_mean"))
    assert row.surrogate.keywords == {"clip_low": 0.2, "clip_high": 0.28}
    assert row.reduction is objectives.token_mean
    assert build(AlgorithmConfig()).reduction is objectives.sequence_mean


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_every_row_can_be_built_under_every_preset(name: str, preset: str):
    row = build(AlgorithmConfig(name=name, preset=preset))
    assert set(row.settings) <= set(SETTINGS), "a setting that is no option"
    assert all(ALGORITHMS[name].accepts(k) for k in row.settings), "one that no part takes"


def test_the_user_wins_over_a_preset_and_the_preset_over_the_row():
    assert build(AlgorithmConfig(preset="openrlhf")).settings["eps"] == 1e-9
    assert build(AlgorithmConfig(preset="openrlhf", eps=1e-5)).settings["eps"] == 1e-5
    assert build(AlgorithmConfig(preset="verl")).reduction is objectives.token_mean
    mean = AlgorithmConfig(preset="verl", reduction="sequence_mean")
    assert build(mean).reduction is objectives.sequence_mean
    config = AlgorithmConfig.model_validate({"preset": "trl", "correction": {"high": 5.0}})
    assert (config.correction.kind, config.correction.high) == ("sequence_mask", 5.0)


BROKEN = {
    "std with group size 1": ({}, {"group_size": 1}, "group_size=1"),
    "loo with group size 1": ({"name": "rloo"}, {"group_size": 1}, "group_size=1"),
    "top_p without recomputed": ({}, {"samples_all_tokens": False}, "anchor=recomputed"),
    "correction without recomputed": ({"correction": {"kind": "token_mask"}}, {}, "recomputed"),
    "bounds": (
        {"anchor": "recomputed", "correction": {"kind": "token_mask", "low": 3.0}},
        {},
        "correction.low=3.0",
    ),
    "kl options without kl": ({"kl": {"placement": "reward"}}, {}, "kl.coef=0"),
    "kl target without kl": ({"kl": {"target": 0.1}}, {}, "kl.coef=0"),
    "adapter without lora": ({"kl": {"coef": 0.1, "reference": "adapter"}}, {}, "lora.rank"),
    "adapter that moves": (
        {"kl": {"coef": 0.1, "reference": "adapter", "update_every": 2}},
        {"has_adapters": True},
        "update_every",
    ),
    "sft with a reward": (
        {"name": "sft", "kl": {"coef": 0.1, "placement": "reward"}},
        {},
        "rewards",
    ),
    "importance in reward": (
        {"kl": {"coef": 0.1, "placement": "reward", "importance": True}},
        {},
        "kl.importance",
    ),
    "KL in the reward of steps": (
        {"name": "grpo_process", "kl": {"coef": 0.1, "placement": "reward"}},
        {},
        "judged steps alone",
    ),
    "reference without kl": ({"kl": {"reference": "sharded"}}, {}, "kl sets reference"),
    "minibatches": ({"minibatches": 5}, {}, "minibatches=5"),
    "entropy": ({"entropy": {"coef": 0.2, "floor": 0.3}}, {}, "entropy.limit"),
}


def complaints(options: dict[str, Any], **sizes: Any) -> list[str]:
    config = LearnerConfig.model_validate({"algorithm": options})
    usual = {
        "group_size": 4,
        "groups_per_step": 4,
        "samples_all_tokens": True,
        "has_adapters": False,
    }
    return contradictions(config, **{**usual, **sizes})


@pytest.mark.parametrize("what", BROKEN)
def test_contradictions_are_named_with_the_way_out(what: str):
    options, sizes, words = BROKEN[what]
    [sentence] = complaints(options, **sizes)
    assert words in sentence
    assert not complaints({}), "nothing is wrong with the defaults"


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_no_row_contradicts_itself(name: str, preset: str):
    assert complaints({"name": name, "preset": preset}) == []
    without = {"name": name, "preset": preset, "kl": {"coef": 0.0}}
    assert complaints(without) == [], "KL can be switched off"


def test_critic_options_want_a_critic():
    critic = CriticConfig(lr=1e-3)
    sizes = {"group_size": 4, "groups_per_step": 4, "samples_all_tokens": True}
    grpo = LearnerConfig(critic=critic)
    [sentence] = contradictions(grpo, **sizes, has_adapters=False)
    assert "learner.critic" in sentence and "ppo" in sentence
    ppo = LearnerConfig(critic=critic, algorithm=AlgorithmConfig(name="ppo"))
    assert contradictions(ppo, **sizes, has_adapters=False) == []


def test_unknown_names_come_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean dr_grpo"):
        build(AlgorithmConfig(name="drgrpo"))
    with pytest.raises(ValueError, match="did you mean verl"):
        AlgorithmConfig(preset="verll")
    with pytest.raises(ValueError, match="gmpo has no use for it; it takes clip_low, clip_high"):
        build(AlgorithmConfig(name="gmpo", dual_clip=3.0))


def test_the_learning_rate_rises_and_falls():
    config = OptimConfig(lr=1.0, warmup_steps=2, final_lr_fraction=0.1)
    rates = [learning_rate(config, step=s, steps=12) for s in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    constant = OptimConfig(lr=1.0)
    assert {learning_rate(constant, step=s, steps=5) for s in range(9)} == {1.0}
