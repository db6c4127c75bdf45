"""Every row learns: a bandit whose arms are the first token, through the real credit and loss."""

from typing import Any

import numpy as np
import pytest
import torch
from builders import prompt
from toy import Toy

from learner.algorithms import ALGORITHMS
from learner.config import LearnerConfig
from rewards import Score
from rollout import Completion, Group, ScoredGroup
from rollout.schema import to_table

ARMS, LUCKY, LENGTH, GROUPS, SIBLINGS = 6, 2, 2, 6, 8


def sample(toy: Toy, rng: np.random.Generator, last: int, greedy: bool = False) -> np.ndarray:
    tokens: list[int] = []
    for _ in range(LENGTH):
        logp = arms(toy.weights[last])
        chosen = int(logp.argmax()) if greedy else int(rng.choice(ARMS, p=logp.exp().numpy()))
        tokens.append(chosen)
        last = chosen
    return np.array(tokens, dtype=np.int32)


def arms(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach()[:ARMS].log_softmax(0)


def reward(tokens: np.ndarray) -> float:
    """Both tokens count, so that steps and tokens may be credited one by one."""
    return float((tokens < LUCKY).mean())


def play(toy: Toy, rng: np.random.Generator, version: int) -> list[ScoredGroup]:
    found = []
    for ticket in range(GROUPS):
        asked = prompt(ticket)
        completions, scores, steps = [], [], []
        for _ in range(SIBLINGS):
            tokens = sample(toy, rng, int(asked.token_ids[-1]))
            before = [int(asked.token_ids[-1]), *(int(token) for token in tokens[:-1])]
            logp_TV = toy.weights[before].detach().log_softmax(-1)
            logp = [float(row[token]) for row, token in zip(logp_TV, tokens, strict=True)]
            completions.append(
                Completion(
                    token_ids=tokens,
                    trainable=np.ones(LENGTH, dtype=np.bool_),
                    logprobs=np.array(logp, dtype=np.float32),
                    versions=np.full(LENGTH, version, dtype=np.int32),
                    text="",
                    finish_reason="stop",
                )
            )
            scores.append(Score(reward=reward(tokens), parts={}))
            steps.append(tuple((i + 1, float(t < LUCKY)) for i, t in enumerate(tokens)))
        found.append(
            ScoredGroup(
                group=Group(ticket=ticket, prompt=asked, completions=tuple(completions)),
                scores=tuple(scores),
                steps=tuple(steps),
                greedy_reward=reward(sample(toy, rng, int(asked.token_ids[-1]), greedy=True)),
            )
        )
    return found


def trained(name: str, **options: Any) -> tuple[list[float], Toy]:
    """Mean reward of each step."""
    toy = Toy(LearnerConfig.model_validate({"algorithm": {"name": name, **options}}))
    with torch.no_grad():
        toy.weights[:, ARMS:] = -30.0  # the bandit has no other arms
    toy.reference = toy.weights.detach().clone()
    optimizer = torch.optim.Adam([toy.weights, toy.values], lr=0.1)
    rng = np.random.default_rng(0)
    rewards = []
    for step in range(25):
        groups = play(toy, rng, step)
        rewards.append(float(np.mean([r for g in groups for r in g.rewards])))
        table = to_table(groups, step=step, run="bandit", temperature=1.0)
        for loss in toy.losses(table, ranks=2, budget=60, version=step):
            assert torch.isfinite(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return rewards, toy


SAMPLED = [name for name, row in ALGORITHMS.items() if not row.supervised]


@pytest.mark.parametrize("name", SAMPLED)
def test_every_row_finds_the_lucky_arms(name: str):
    rewards, toy = trained(name)
    assert rewards[0] < 0.5, "the start is close to chance, a third"
    assert np.mean(rewards[-5:]) > 0.85, f"reward by step: {np.round(rewards, 2)}"
    assert torch.isfinite(toy.weights).all()


OPTIONS: dict[str, dict[str, Any]] = {
    "minibatches": {"minibatches": 3},
    "recomputed anchor and correction": {
        "anchor": "recomputed",
        "correction": {"kind": "sequence_truncate"},
    },
    "KL in the loss": {"kl": {"coef": 0.01}},
    "KL in the reward": {"kl": {"coef": 0.01, "estimator": "k1", "placement": "reward"}},
    "KL at the end": {"kl": {"coef": 0.01, "estimator": "k1", "placement": "reward_at_end"}},
    "entropy bonus": {"entropy": {"coef": 0.001}},
    "TRL's conventions": {"preset": "trl"},
    "verl's conventions": {"preset": "verl"},
    "OpenRLHF's conventions": {"preset": "openrlhf"},
}


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize("what", OPTIONS)
def test_options_do_not_keep_it_from_learning(what: str, name: str):
    rewards, _ = trained(name, **OPTIONS[what])
    assert np.mean(rewards[-5:]) > 0.85, f"reward by step: {np.round(rewards, 2)}"


def test_a_strong_kl_keeps_the_policy_where_it_began():
    free, _ = trained("grpo")
    held, _ = trained("grpo", kl={"coef": 10.0})
    assert np.mean(held[-5:]) < np.mean(free[-5:]) - 0.3


def test_an_entropy_bonus_keeps_the_policy_open():
    def entropy(**options: Any) -> float:
        _, toy = trained("grpo", **options)
        logp = toy.weights.detach()[:ARMS].log_softmax(-1)
        return float(-(logp.exp() * logp).sum(-1).mean())

    assert entropy(entropy={"coef": 2.0}) > entropy() + 0.3
