"""Ratios, surrogates, KL estimators, corrections, reductions: tensors in, tensors out, no config.

Formulas, sources and where the peers differ: docs/algorithms.md. Every function keeps the dtype it
is given; the learner gives float32. B rows, T time; `mask_BT` is 1 on the tokens that are trained.

A surrogate is `(logp_BT, anchor_BT, advantage_BT, mask_BT, *, settings) -> (loss_BT, clipped_BT)`:
the loss of each token, and where a clip took its gradient away. What concerns a whole sequence is
the same number on each of its tokens.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
Level = Literal["token", "sequence", "sequence_token", "product"]


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, 1]. What stands outside the mask does not matter, NaN included."""
    return torch.where(mask_BT > 0, values_BT, 0.0).sum(dim=1, keepdim=True)


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, 1]; 0 on a row without a masked-in token."""
    return masked_sum(values_BT, mask_BT) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


# -- the ratio --------------------------------------------------------------------------------


def ratio(
    logp_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor | None = None, *, level: Level = "token"
) -> Tensor:
    """How much likelier the policy in training makes what was sampled, [B, T].

    `token`: exp(logp - anchor), the log clamped at +-20. `sequence` (GSPO, arXiv 2507.18071,
    section 4.1): exp of its mean over the sequence, on every token. `sequence_token` (section
    4.3): the same number, but each token's gradient is its own. `product`: exp of its sum, the
    ratio of whole completions.
    """
    gap_BT = (logp_BT - anchor_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if level == "token" or mask_BT is None:
        return gap_BT.exp()
    if level == "product":
        total_B1 = masked_sum(gap_BT, mask_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return total_B1.exp().expand_as(gap_BT)
    mean_B1 = masked_mean(gap_BT, mask_BT)
    if level == "sequence":
        return mean_B1.exp().expand_as(gap_BT)
    return (logp_BT - logp_BT.detach() + mean_B1.detach()).exp()


# -- surrogates -------------------------------------------------------------------------------


def clipped(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = math.inf,
    clip_high: float = math.inf,
    dual_clip: float | None = None,
    level: Level = "token",
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (arXiv 1707.06347, eq. 7): -min(rA, clip(r, 1-low, 1+high) A).

    Without clips, plain importance weighting. `dual_clip` c bounds the loss by -cA where A < 0
    (arXiv 1912.09729).
    """
    ratio_BT = ratio(logp_BT, anchor_BT, mask_BT, level=level)
    free_BT = ratio_BT * advantage_BT
    bound_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantage_BT
    loss_BT, clipped_BT = -torch.minimum(free_BT, bound_BT), bound_BT < free_BT
    if dual_clip is not None:
        ceiling_BT = -dual_clip * advantage_BT
        over_BT = (advantage_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT, clipped_BT = torch.where(over_BT, ceiling_BT, loss_BT), clipped_BT | over_BT
    return loss_BT, clipped_BT


def detached(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = math.inf,
    clip_high: float = math.inf,
    cap: Literal["one_plus_eps", "absolute_cap"] = "one_plus_eps",
    level: Level = "token",
) -> tuple[Tensor, Tensor]:
    """CISPO (arXiv 2506.13585): -sg(clip(r)) A logp. Every token keeps a gradient.

    `one_plus_eps` clips r to [1 - low, 1 + high] (paper, verl); `absolute_cap` to at most `high`,
    with no lower bound (TRL).
    """
    ratio_BT = ratio(logp_BT, anchor_BT, mask_BT, level=level).detach()
    if cap == "absolute_cap":
        weight_BT = ratio_BT.clamp(max=clip_high)
    else:
        weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return -weight_BT * advantage_BT * logp_BT, weight_BT != ratio_BT


def sigmoid_gated(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    level: Level = "token",
) -> tuple[Tensor, Tensor]:
    """SAPO (arXiv 2511.20347): -A sigmoid(tau (r - 1)) 4 / tau, tau by the sign of A: a
    soft gate in place of a clip."""
    ratio_BT = ratio(logp_BT, anchor_BT, mask_BT, level=level)
    tau_BT = torch.where(advantage_BT > 0, tau_positive, tau_negative)
    gate_BT = torch.sigmoid(tau_BT * (ratio_BT - 1)) * 4 / tau_BT
    return -advantage_BT * gate_BT, torch.zeros_like(ratio_BT, dtype=torch.bool)


def geometric_mean(
    logp_BT: Tensor,
    anchor_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = math.inf,
    clip_high: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """GMPO (arXiv 2507.20673): the geometric mean of a sequence's token ratios, each
    clipped (in log space, against the advantage's sign) before it enters the mean."""
    gap_BT = (logp_BT - anchor_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    sign_BT = advantage_BT.sign()
    free_BT, bound_BT = sign_BT * gap_BT, sign_BT * gap_BT.clamp(-clip_low, clip_high)
    gap_BT = sign_BT * torch.minimum(free_BT, bound_BT)
    loss_B1 = -masked_mean(advantage_BT, mask_BT) * masked_mean(gap_BT, mask_BT).exp()
    return loss_B1.expand_as(gap_BT), bound_BT < free_BT


def likelihood(
    logp_BT: Tensor, anchor_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """-A logp: REINFORCE (Williams 1992); with A = 1, cross-entropy. The anchor plays no part."""
    return -logp_BT * advantage_BT, torch.zeros_like(logp_BT, dtype=torch.bool)


# -- distance from the reference ----------------------------------------------------------------

ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")


def kl(logp_BT: Tensor, reference_BT: Tensor, *, estimator: str = "k3") -> Tensor:
    """An estimate of KL(policy || reference) per token (Schulman 2020), d = logp - reference.

    `k1` d, `abs` |d|, `k2` d^2/2, `k3` exp(-d) - 1 + d with d clamped at +-20 and the result at
    +-10. A trailing `+` keeps the value and takes k2's gradient, the one whose expectation is the
    gradient of this KL.
    """
    gap_BT = logp_BT - reference_BT
    kind = estimator.removesuffix("+")
    if kind == "k1":
        value_BT = gap_BT
    elif kind == "abs":
        value_BT = gap_BT.abs()
    elif kind == "k2":
        value_BT = gap_BT.square() / 2
    elif kind == "k3":
        away_BT = (-gap_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        value_BT = (away_BT.exp() - away_BT - 1).clamp(-10.0, 10.0)
    else:
        raise ValueError(f"KL estimator {estimator!r}: one of {', '.join(ESTIMATORS)}")
    if estimator.endswith("+"):
        straight_BT = gap_BT.square() / 2
        value_BT = value_BT.detach() + straight_BT - straight_BT.detach()
    return value_BT


# -- the critic ---------------------------------------------------------------------------------


def value_loss(
    value_BT: Tensor, old_BT: Tensor, return_BT: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error; with a clip, the worse of it and of the error of a value that may
    move at most `clip` from the old one. Also says where the clip is the worse."""
    free_BT = (value_BT - return_BT).square()
    if clip is None:
        return free_BT / 2, torch.zeros_like(free_BT, dtype=torch.bool)
    near_BT = old_BT + (value_BT - old_BT).clamp(-clip, clip)
    bound_BT = (near_BT - return_BT).square()
    return torch.maximum(free_BT, bound_BT) / 2, bound_BT > free_BT


# -- train/inference correction -------------------------------------------------------------------


def correction(
    gap_BT: Tensor, mask_BT: Tensor, *, kind: str, low: float | None, high: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(weight_BT, keep_BT, ratio_BT) for the policy's loss, from gap = anchor - behaviour: the
    learner's logprob of a sampled token less the sampler's own. No gradient.

    The ratio is exp(gap) per token; of the product over the completion for `sequence_*`, of the
    geometric mean for `geometric`. `*_truncate` weighs by the ratio clamped to [low, high],
    `*_mask` by the ratio and drops what lies outside, `geometric` drops what lies outside and
    weighs nothing; `none` does neither.
    """
    gap_BT = gap_BT.detach().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if kind == "geometric":
        ratio_BT = masked_mean(gap_BT, mask_BT).exp().expand_as(gap_BT)
    elif kind.startswith("sequence"):
        ratio_BT = ratio(gap_BT, torch.zeros_like(gap_BT), mask_BT, level="product")
    else:
        ratio_BT = gap_BT.exp()
    everything_BT = torch.ones_like(gap_BT, dtype=torch.bool)
    inside_BT = everything_BT
    if low is not None:
        inside_BT = inside_BT & (ratio_BT >= low)
    if high is not None:
        inside_BT = inside_BT & (ratio_BT <= high)
    if kind == "none":
        return torch.ones_like(gap_BT), everything_BT, ratio_BT
    if kind == "geometric":
        return torch.ones_like(gap_BT), inside_BT, ratio_BT
    if kind.endswith("mask"):
        return ratio_BT, inside_BT, ratio_BT
    bounded = low is not None or high is not None
    return ratio_BT.clamp(low, high) if bounded else ratio_BT, everything_BT, ratio_BT


# -- reductions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """What one optimizer step trains on, over all ranks: the denominators."""

    tokens: int
    sequences: int
    max_tokens: int = 1
    """Longest completion that the config allows."""


def token_mean(mask_BT: Tensor, counts: Counts) -> Tensor:
    """Weight of each token when the loss is the mean over all tokens of the step."""
    return mask_BT / max(counts.tokens, 1)


def sequence_mean(mask_BT: Tensor, counts: Counts) -> Tensor:
    """... the mean over sequences of their token means."""
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return mask_BT / (lengths_B1 * max(counts.sequences, 1))


def sequence_sum(mask_BT: Tensor, counts: Counts) -> Tensor:
    """... the mean over sequences of their token sums."""
    return mask_BT / max(counts.sequences, 1)


def constant_length(mask_BT: Tensor, counts: Counts) -> Tensor:
    """... the mean over sequences of their token sums, over the longest completion allowed
    (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    return mask_BT / (max(counts.sequences, 1) * counts.max_tokens)
