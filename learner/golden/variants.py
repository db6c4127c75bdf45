"""Surrogates and advantages that peers have and our table does not, in the shapes of our own.

`learner.golden` computes them so that any of a peer's values can be checked, and a row can be made
of each. They are no rows because they do not keep our promises: the covariance clips depend on how
the batch was split, the optimal baselines want the squared probabilities of the whole vocabulary,
the rest await someone who needs them. B rows, T time.
"""

import math

import numpy as np
import torch
from torch import Tensor

from learner.advantages import Evidence, group_relative, whiten
from learner.objectives import LOG_RATIO_BOUND, masked_mean, masked_sum, ratio

# -- surrogates: (logp_BT, anchor_BT, advantage_BT, mask_BT) -> (loss_BT, clipped_BT) ------------


def divergence_gated(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    limit: float,
    divergence: str,
) -> tuple[Tensor, Tensor]:
    """DPPO (verl `dppo_tv`, `dppo_kl`): a token trains while its probability has moved less than
    the bound (total variation, or KL of the two outcomes) or moves back; weight sg(min(r, limit)).
    """
    new_BT, old_BT = logp_BT.detach().exp(), anchor_BT.exp()
    if divergence == "tv":
        up_BT = new_BT - old_BT <= clip_high
        down_BT = new_BT - old_BT >= -clip_low
    else:
        others_BT = ((1 - old_BT + 1e-8) / (1 - new_BT + 1e-8)).log()
        moved_BT = old_BT * (anchor_BT - logp_BT.detach()) + (1 - old_BT) * others_BT
        up_BT = (moved_BT <= clip_high) | (new_BT <= old_BT)
        down_BT = (moved_BT <= clip_low) | (new_BT >= old_BT)
    keep_BT = torch.where(advantage_BT > 0, up_BT, down_BT)
    weight_BT = ratio(logp_BT, anchor_BT).detach().clamp(max=limit)
    return -advantage_BT * weight_BT * logp_BT * keep_BT, ~keep_BT


def quadratic(
    logp_BT: Tensor, anchor_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """DRO (verl `dro`): -(A logp - beta/2 (logp - anchor)^2)."""
    pull_BT = beta / 2 * (logp_BT - anchor_BT).square()
    return pull_BT - logp_BT * advantage_BT, torch.zeros_like(mask_BT, dtype=torch.bool)


def covariance_clipped(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    share: float,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """Clip-Cov (arXiv 2505.22617): PPO's surrogate, and of the tokens whose covariance of
    advantage and logprob lies in (low, high) a share trains nothing. Where more qualify than the
    share allows, the peer draws at random and we take the largest."""
    ratio_BT = (logp_BT - anchor_BT).exp()
    free_BT = -advantage_BT * ratio_BT
    bound_BT = -advantage_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    clipped_BT, inside_BT = bound_BT > free_BT, mask_BT > 0
    covariance_BT = _covariance(logp_BT, advantage_BT, inside_BT)
    able_BT = inside_BT & ~clipped_BT & (covariance_BT > low) & (covariance_BT < high)
    budget = min(max(1, int(share * int(inside_BT.sum()))), int(able_BT.sum()))
    order = torch.where(able_BT, covariance_BT, -math.inf).flatten().topk(budget).indices
    silent_BT = torch.zeros_like(inside_BT)
    silent_BT.view(-1)[order] = True
    return torch.maximum(free_BT, bound_BT) * ~silent_BT, silent_BT


def covariance_penalised(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    share: float,
    coef: float,
) -> tuple[Tensor, Tensor]:
    """KL-Cov (arXiv 2505.22617): importance weighting; the share of tokens with the largest
    covariance pays coef |logp - anchor| besides."""
    gap_BT, inside_BT = logp_BT - anchor_BT, mask_BT > 0
    covariance_BT = _covariance(logp_BT, advantage_BT, inside_BT)
    count = max(1, int(share * int(inside_BT.sum())))
    order = torch.where(inside_BT, covariance_BT, -math.inf).flatten().topk(count).indices
    chosen_BT = torch.zeros_like(inside_BT)
    chosen_BT.view(-1)[order] = True
    loss_BT = -advantage_BT * gap_BT.exp() + coef * gap_BT.abs() * chosen_BT
    return loss_BT, chosen_BT


def _covariance(logp_BT: Tensor, advantage_BT: Tensor, inside_BT: Tensor) -> Tensor:
    logp_BT = logp_BT.detach()
    mean = (advantage_BT[inside_BT].mean(), logp_BT[inside_BT].mean())
    return (advantage_BT - mean[0]) * (logp_BT - mean[1])


def variational(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    positive: tuple[float, float],
    negative: tuple[float, float],
    correction_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """VESPO (TRL `vespo`): -phi(W) A logp, W the ratio of whole completions and phi a bell of
    (k, lambda) chosen by the sign of A: exp(lambda + k log W - lambda W)."""
    total_B1 = masked_sum((logp_BT - anchor_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND), mask_BT)
    if correction_BT is not None:
        logs_BT = correction_BT.log().clamp(math.log(1e-8), LOG_RATIO_BOUND)
        total_B1 = total_B1 + logs_BT.sum(dim=1, keepdim=True)
    log_B1 = total_B1.detach().clamp(math.log(1e-8), LOG_RATIO_BOUND)
    good_BT = advantage_BT >= 0
    k_BT = torch.where(good_BT, positive[0], negative[0])
    lam_BT = torch.where(good_BT, positive[1], negative[1]).clamp(min=1e-4)
    phi_BT = (lam_BT + k_BT * log_B1 - lam_BT * log_B1.exp()).exp()
    phi_BT = torch.nan_to_num(phi_BT, nan=0.0, posinf=0.0, neginf=0.0)
    return -phi_BT * advantage_BT * logp_BT, torch.zeros_like(mask_BT, dtype=torch.bool)


def far_and_bad(
    logp_BT: Tensor, behaviour_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, limit: float
) -> Tensor:
    """Off-policy sequence masking (TRL `off_policy_mask_threshold`): rows [B, 1] with A < 0 whose
    mean behaviour - logp is beyond the limit."""
    drift_B1 = masked_mean(behaviour_BT - logp_BT.detach(), mask_BT)
    return (advantage_BT[:, :1] < 0) & (drift_B1 > limit)


# -- advantages ----------------------------------------------------------------------------------


def length_weighted(evidence: Evidence) -> np.ndarray:
    """OPO (arXiv 2505.23585): the baseline is the length-weighted mean reward of the group; 0 for
    a group of one."""
    lengths_N, rewards_N = evidence.mask_NT.sum(axis=1), evidence.totals_N
    result_N = np.zeros(len(rewards_N))
    for rows in evidence.groups():
        weights = lengths_N[rows]
        baseline = (weights * rewards_N[rows]).sum() / weights.sum() if len(rows) > 1 else 0.0
        result_N[rows] = rewards_N[rows] - baseline
    return result_N


def nonzero_scaled(evidence: Evidence) -> np.ndarray:
    """GPG (arXiv 2504.02546) as verl has it: centred rewards times rows over rows with a reward
    that is not 0."""
    alpha = len(evidence.rewards_N) / max(1, np.count_nonzero(evidence.totals_N))
    return alpha * group_relative(evidence, scale="none", guarded=False)


def best_of_group(evidence: Evidence, *, scale: bool, eps: float = 1e-6) -> np.ndarray:
    """Pass@k (verl `grpo_passk`): the best of a group gets what it is ahead of the second best."""
    rewards_N = evidence.totals_N
    result_N = np.zeros(len(rewards_N))
    for rows in evidence.groups():
        if len(rows) < 2:
            continue
        second, first = np.sort(rewards_N[rows])[-2:]
        spread = rewards_N[rows].std(ddof=1) + eps if scale else 1.0
        result_N[rows[rewards_N[rows].argmax()]] = (first - second) / spread
    return result_N


def whitened_group_relative(evidence: Evidence, *, eps: float = 1e-6) -> np.ndarray:
    """GDPO (arXiv 2601.05242) with one reward: GRPO's advantage, whitened over all tokens."""
    advantage_N = group_relative(evidence, eps=eps, guarded=False)
    return whiten(advantage_N[:, None] * evidence.mask_NT, evidence.mask_NT)


def optimal_token_baseline(
    evidence: Evidence, logp_NT: np.ndarray, squares_NT: np.ndarray, weight_NT: np.ndarray | None
) -> np.ndarray:
    """The variance-optimal baseline of each position (verl `optimal_token_baseline`): the mean
    return of the group, weighted by the accumulated squared norm of the score, approximated by
    1 - 2 p + sum p^2. The longest row alone at a position has none."""
    mask_NT = evidence.mask_NT
    returns_NT = (evidence.token_rewards_NT * mask_NT)[:, ::-1].cumsum(axis=1)[:, ::-1]
    energy_NT = 1 - 2 * np.exp(logp_NT) + squares_NT
    if weight_NT is not None:
        energy_NT = energy_NT * weight_NT**2
    energy_NT = (energy_NT * mask_NT).cumsum(axis=1)
    baseline_NT = np.zeros(mask_NT.shape)
    lengths_N = mask_NT.sum(axis=1)
    for rows in evidence.groups():
        if len(rows) < 2:
            continue
        inside = mask_NT[rows]
        top = (returns_NT[rows] * energy_NT[rows] * inside).sum(axis=0)
        baseline_NT[rows] = top / ((energy_NT[rows] * inside).sum(axis=0) + 1e-8)
        second, first = np.sort(lengths_N[rows])[-2:]
        if first > second:
            baseline_NT[rows[lengths_N[rows].argmax()], second:] = 0.0
    return (returns_NT - baseline_NT) * mask_NT
