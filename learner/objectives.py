"""Ratios, surrogates, KL estimators and reductions: tensors in, tensors out, no config.

Everything is computed in float32. Formulas and sources: docs/algorithms.md. B rows, T time.
"""

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0


def ratio(logp_BT: Tensor, anchor_BT: Tensor) -> Tensor:
    """exp(logp - anchor), the log clamped at +-20."""
    return (logp_BT - anchor_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def clipped(
    logp_BT: Tensor, anchor_BT: Tensor, advantage_B1: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (arXiv 1707.06347, eq. 7): -min(rA, clip(r, 1-low, 1+high) A).

    Also says where the clip took the gradient away.
    """
    low, high = clip
    ratio_BT = ratio(logp_BT, anchor_BT)
    free_BT = ratio_BT * advantage_B1
    bound_BT = ratio_BT.clamp(1 - low, 1 + high) * advantage_B1
    return -torch.minimum(free_BT, bound_BT), bound_BT < free_BT


def likelihood(
    logp_BT: Tensor, anchor_BT: Tensor, advantage_B1: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """-A log p: with A = 1 the cross-entropy. Anchor and clip play no part."""
    return -logp_BT * advantage_B1, torch.zeros_like(logp_BT, dtype=torch.bool)


def k3(logp_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logp (Schulman 2020): unbiased for KL(policy ||
    reference), never negative. d is clamped at +-20 and the result at 10."""
    difference_BT = (reference_BT - logp_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return (difference_BT.exp() - difference_BT - 1).clamp(max=10.0)


def token_mean(trains_BT: Tensor, tokens: int, sequences: int) -> Tensor:
    """Weight of each token when the loss is the mean over all tokens of the step."""
    return trains_BT / max(tokens, 1)


def sequence_mean(trains_BT: Tensor, tokens: int, sequences: int) -> Tensor:
    """Weight of each token when the loss is the mean over sequences of their token means."""
    lengths_B1 = trains_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return trains_BT / (lengths_B1 * max(sequences, 1))
