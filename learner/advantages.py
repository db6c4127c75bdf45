"""Rewards to advantages, for the whole table at once, in float64. Formulas: docs/algorithms.md.

An advantage is a function `(evidence, *, settings) -> advantage`, of shape [N] (one number per
completion) or [N, T] (one per token). N rows of the table, T tokens of the longest completion.

A completion that could not be scored plays no part in any of them and gets 0. Where a group is the
baseline, two rules hold besides: with fewer than two scored completions it has none and gives 0,
never the raw reward; and equal rewards give exactly 0 (`max == min` is asked, since the std of
equal 0.1s is not 0 in floating point). `guarded=False` lifts these two, to compute what peers do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What credit is assigned from."""

    rewards_N: np.ndarray
    """float64; NaN where the completion could not be scored"""
    groups_N: np.ndarray
    mask_NT: np.ndarray = field(default_factory=lambda: np.ones((0, 0), dtype=bool))
    """bool, True on the tokens that are trained"""
    extra_NT: np.ndarray | None = None
    """Rewards that belong to single tokens: the KL penalty, when it is paid in reward"""
    values_NT: np.ndarray | None = None
    """The critic's value of the state before each token"""
    steps_NT: np.ndarray | None = None
    """Rewards of single steps, at the token that ends the step; NaN elsewhere"""
    greedy_N: np.ndarray | None = None
    """Reward of the greedy completion of the same prompt"""
    rounds_N: np.ndarray | None = None
    """In which round each was sampled, where a group goes on until its rewards differ; None where
    all were sampled at once"""

    @property
    def scored_N(self) -> np.ndarray:
        return ~np.isnan(self.rewards_N)

    @property
    def totals_N(self) -> np.ndarray:
        """Reward of each completion, what its tokens were given besides included."""
        if self.extra_NT is None:
            return self.rewards_N
        return self.rewards_N + np.where(self.mask_NT, self.extra_NT, 0.0).sum(axis=1)

    @property
    def token_rewards_NT(self) -> np.ndarray:
        """The completion's reward on its last trained token, the others' own beside it."""
        rewards_NT = np.where(
            last_of(self.mask_NT) & self.scored_N[:, None], self.rewards_N[:, None], 0.0
        )
        if self.extra_NT is not None:
            rewards_NT += np.where(self.mask_NT, self.extra_NT, 0.0)
        return rewards_NT

    def groups(self) -> Iterator[np.ndarray]:
        """Row numbers of the scored completions of each group."""
        for group in np.unique(self.groups_N):
            yield np.flatnonzero((self.groups_N == group) & self.scored_N)

    def comparisons(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers of what is compared with, which of them the baseline is for).

        A completion is compared with those of its round and of the rounds before. Whether there is
        a later round depends on how this one ended: a baseline that looked there would be one that
        knows the completion's own reward, and such a baseline bends the gradient.
        """
        for rows in self.groups():
            rounds = np.zeros(len(rows)) if self.rounds_N is None else self.rounds_N[rows]
            for number in np.unique(rounds):
                known = rounds <= number
                yield rows[known], rounds[known] == number


def last_of(mask_NT: np.ndarray) -> np.ndarray:
    """True on the last masked-in token of each row."""
    last_NT = np.zeros(mask_NT.shape, dtype=bool)
    rows = np.flatnonzero(mask_NT.any(axis=1))
    last_NT[rows, mask_NT.shape[1] - 1 - mask_NT[rows, ::-1].argmax(axis=1)] = True
    return last_NT


def _centred(
    evidence: Evidence, baseline: Callable[[np.ndarray], np.ndarray | float], guarded: bool
) -> np.ndarray:
    """Rewards less their group's baseline."""
    totals_N = evidence.totals_N
    result_N = np.zeros(len(totals_N))
    for rows, own in evidence.comparisons():
        rewards = totals_N[rows]
        if len(rows) > 1 and rewards.max() != rewards.min():
            result_N[rows[own]] = (rewards - baseline(rewards))[own]
        elif len(rows) == 1 and not guarded:
            result_N[rows] = rewards
    return result_N


def group_relative(
    evidence: Evidence, *, scale: Scale = "group", eps: float = 1e-6, guarded: bool = True
) -> np.ndarray:
    """GRPO: (r - mean) / (std + eps) within each group, std with ddof 1 (arXiv 2402.03300, section
    4.1.2). `scale` takes the std of the group, of all scored rows, or leaves it out (Dr. GRPO).

    >>> rewards, groups = np.array([0.0, 1.0, 0.1, 0.1]), np.array([7, 7, 8, 8])
    >>> group_relative(Evidence(rewards_N=rewards, groups_N=groups)).round(4)
    array([-0.7071,  0.7071,  0.    ,  0.    ])
    """
    centred_N = _centred(evidence, np.mean, guarded)
    if scale == "none":
        return centred_N
    totals_N = evidence.totals_N
    spread_N = np.ones(len(totals_N))
    if scale == "batch":
        rows = np.flatnonzero(evidence.scored_N)
        spread_N[rows] = totals_N[rows].std(ddof=1) if len(rows) > 1 else 0.0
    else:
        for rows, own in evidence.comparisons():
            spread_N[rows[own]] = totals_N[rows].std(ddof=1) if len(rows) > 1 else 1.0
    return np.where(centred_N == 0, 0.0, centred_N / (spread_N + eps))


def leave_one_out(evidence: Evidence, *, guarded: bool = True) -> np.ndarray:
    """RLOO: the reward less the mean of the others of its group (arXiv 2402.14740)."""
    return _centred(evidence, lambda r: (r.sum() - r) / (len(r) - 1), guarded)


def minus_greedy(evidence: Evidence) -> np.ndarray:
    """ReMax: the reward less that of the greedy completion (arXiv 2310.10505, algorithm 1). A
    prompt whose greedy completion could not be scored gives 0."""
    if evidence.greedy_N is None:
        raise RuntimeError("ReMax needs the reward of the greedy completion of each prompt")
    there_N = evidence.scored_N & ~np.isnan(evidence.greedy_N)
    return np.where(there_N, evidence.totals_N - evidence.greedy_N, 0.0)


def constant(evidence: Evidence) -> np.ndarray:
    """1 on every row: supervised fine-tuning wants all of its demonstrations alike."""
    return np.ones(len(evidence.rewards_N))


# -- credit per token ---------------------------------------------------------------------------


def whiten(values_NT: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + 1e-8) over the masked-in cells, var with ddof 1; 0 outside, and
    everywhere when all are equal or there is but one."""
    inside = values_NT[mask_NT]
    result_NT = np.zeros(values_NT.shape)
    if len(inside) > 1 and inside.max() != inside.min():
        result_NT[mask_NT] = (inside - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8)
    return result_NT


def _scored_mask(evidence: Evidence) -> np.ndarray:
    return evidence.mask_NT & evidence.scored_N[:, None]


def discounted(rewards_NT: np.ndarray, mask_NT: np.ndarray, gamma: float) -> np.ndarray:
    """The return of each trained token. Tokens outside the mask pass it on undiscounted: they are
    no decisions."""
    returns_NT = np.zeros(rewards_NT.shape)
    running_N = np.zeros(len(rewards_NT))
    for t in reversed(range(rewards_NT.shape[1])):
        here_N = mask_NT[:, t]
        running_N = np.where(here_N, rewards_NT[:, t] + gamma * running_N, running_N)
        returns_NT[:, t] = np.where(here_N, running_N, 0.0)
    return returns_NT


def whitened_returns(evidence: Evidence, *, gamma: float = 1.0) -> np.ndarray:
    """REINFORCE++ (arXiv 2501.03262): the return of each token, whitened over all tokens
    of the table. No group, no critic."""
    mask_NT = _scored_mask(evidence)
    return whiten(discounted(evidence.token_rewards_NT, mask_NT, gamma), mask_NT)


def whitened_group_baseline(evidence: Evidence, *, guarded: bool = True) -> np.ndarray:
    """REINFORCE++-baseline: the reward less its group's mean, whitened over all tokens of the table
    whose group has a baseline."""
    mask_NT, centred_N = _scored_mask(evidence), _centred(evidence, np.mean, guarded)
    if guarded:
        for rows in evidence.groups():
            mask_NT[rows] &= centred_N[rows].any()
    return whiten(centred_N[:, None] * mask_NT, mask_NT)


def gae(evidence: Evidence, *, gamma: float = 1.0, lam: float = 1.0) -> np.ndarray:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), not whitened: the sum over the
    tokens that follow of (gamma lam)^k delta, delta = r + gamma V' - V. Tokens outside the mask are
    passed over. `gae + values` are the critic's targets."""
    if evidence.values_NT is None:
        raise RuntimeError("GAE needs the critic's values")
    mask_NT, rewards_NT = _scored_mask(evidence), evidence.token_rewards_NT
    result_NT = np.zeros(mask_NT.shape)
    next_N, running_N = np.zeros(len(mask_NT)), np.zeros(len(mask_NT))
    for t in reversed(range(mask_NT.shape[1])):
        here_N, value_N = mask_NT[:, t], evidence.values_NT[:, t]
        delta_N = rewards_NT[:, t] + gamma * next_N - value_N
        running_N = np.where(here_N, delta_N + gamma * lam * running_N, running_N)
        next_N = np.where(here_N, value_N, next_N)
        result_NT[:, t] = np.where(here_N, running_N, 0.0)
    return result_NT


def whitened_gae(evidence: Evidence, *, gamma: float = 1.0, lam: float = 1.0) -> np.ndarray:
    """PPO's advantage: GAE, whitened over all tokens of the table."""
    return whiten(gae(evidence, gamma=gamma, lam=lam), _scored_mask(evidence))


def process(evidence: Evidence, *, eps: float = 1e-6) -> np.ndarray:
    """GRPO with process supervision (arXiv 2402.03300, section 4.1.3): step rewards normalised
    over all steps of the group; a token's advantage is the sum over the steps that end at it or
    later. A completion without judged steps is one step, worth its reward."""
    if evidence.steps_NT is None:
        raise RuntimeError("process supervision needs the rewards of single steps")
    unjudged_N1 = np.isnan(evidence.steps_NT).all(axis=1, keepdims=True)
    whole_NT = np.where(last_of(evidence.mask_NT), evidence.rewards_N[:, None], np.nan)
    given_NT = np.where(unjudged_N1, whole_NT, evidence.steps_NT)
    steps_NT = np.zeros(given_NT.shape)
    for rows in evidence.groups():
        steps = given_NT[rows]
        there = ~np.isnan(steps)
        rewards = steps[there]
        if len(rows) < 2 or len(rewards) < 2 or rewards.max() == rewards.min():
            continue
        normal = np.zeros(steps.shape)
        normal[there] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + eps)
        steps_NT[rows] = normal
    return np.where(evidence.mask_NT, steps_NT[:, ::-1].cumsum(axis=1)[:, ::-1], 0.0)
