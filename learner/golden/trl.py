"""TRL: losses of the GRPO trainer, its rollout correction and its advantages."""

import functools

import numpy as np
import torch
from torch import Tensor

from learner import advantages, objectives
from learner.advantages import Evidence
from learner.golden import variants
from learner.golden.case import Case, Result, gradient, share
from learner.objectives import Counts, masked_mean


def trl_loss(case: Case, hyper: Result) -> Result:
    logps, entropies, mask = case.leaf("logps"), case.leaf("entropies"), case.mask
    old = case["old_logps"] if hyper["old_logps"] == "given" else logps.detach()
    advantage = case.spread("advantages")
    kind, level = hyper["loss_type"], hyper["importance_sampling_level"]
    low = hyper["epsilon"]
    high = low if hyper["epsilon_high"] is None else hyper["epsilon_high"]
    weight = _trl_correction(case, old, hyper)
    common = (logps, old, advantage, mask)
    ratio = objectives.ratio(logps, old, mask, level=level)
    metrics = {"entropy": share(entropies, mask)}
    if kind == "cispo":
        loss, clipped = objectives.detached(
            *common, clip_high=high, cap="absolute_cap", level=level
        )
        metrics["cispo_clip_ratio"] = share(clipped & (advantage > 0), mask)
    elif kind == "sapo":
        loss, _ = objectives.sigmoid_gated(
            *common,
            tau_positive=hyper["sapo_temperature_pos"],
            tau_negative=hyper["sapo_temperature_neg"],
            level=level,
        )
    elif kind == "vespo":
        bell = functools.partial(
            variants.variational,
            positive=(hyper["vespo_k_pos"], hyper["vespo_lambda_pos"]),
            negative=(hyper["vespo_k_neg"], hyper["vespo_lambda_neg"]),
            correction_BT=weight,
        )
        loss, _ = bell(*common)
        # -phi A logp with |A| = 1, over -A logp: phi, on rows with A = 0 as well.
        sign = torch.where(advantage < 0, -1.0, 1.0)
        unit, _ = bell(logps.detach(), old.detach(), sign, mask)
        metrics["vespo/phi_seq_mean"] = float((-unit / logps.detach() * sign)[:, 0].mean())
    else:
        loss, _ = objectives.clipped(
            *common, clip_low=low, clip_high=high, dual_clip=hyper["delta"], level=level
        )
        metrics |= _trl_clip_metrics(ratio.detach(), advantage, mask, low, high, level)
    if hyper["off_policy_mask_threshold"] is not None:
        behaviour = old if hyper["rollout_correction"] is None else case["sampling_logps"]
        loss = loss * ~variants.far_and_bad(
            logps, behaviour, advantage, mask, limit=hyper["off_policy_mask_threshold"]
        )
    chosen = mask
    if hyper["top_entropy_quantile"] < 1:
        inside = (entropies.detach() * mask)[mask > 0].float()
        bar = torch.quantile(inside, 1 - hyper["top_entropy_quantile"])
        chosen = mask * (entropies.detach() * mask >= bar)
        loss = loss * chosen
    if weight is not None and kind != "vespo":
        loss = loss * weight
    if hyper["beta"]:
        kl = objectives.kl(logps, case["ref_logps"], estimator="k3")
        kl = kl * ratio if hyper["use_bias_correction_kl"] else kl
        metrics["kl"] = share(kl, mask)
        loss = loss + hyper["beta"] * kl
    total = (loss * _trl_reduction(mask, hyper)).sum()
    if hyper["entropy_coef"]:
        metrics |= {"policy_loss": float(total.detach()), "entropy_coef": hyper["entropy_coef"]}
        bonus = (entropies * chosen).sum() / chosen.sum().clamp(min=1)
        total = total - hyper["entropy_coef"] * bonus / hyper["grad_accum"]
    result = {
        "loss": total,
        "grad_logps": gradient(total, logps),
        "grad_entropies": gradient(total, entropies),
        "metrics": metrics,
    }
    if weight is not None:
        result["rollout_ratio"] = weight
    return result


def _trl_correction(case: Case, old: Tensor, hyper: Result) -> Tensor | None:
    if hyper["rollout_correction"] is None:
        return None
    gap = torch.where(case.mask > 0, old - case["sampling_logps"], 0.0)
    weight, keep, _ = objectives.correction(
        gap,
        case.mask,
        kind=hyper["rollout_correction"],
        low=hyper["rc_clip_min"],
        high=hyper["rc_clip_max"],
    )
    return weight * keep


def _trl_reduction(mask: Tensor, hyper: Result) -> Tensor:
    kind, rows = hyper["loss_type"], len(mask)
    tokens = hyper["num_items_in_batch"]
    tokens = int(mask.sum()) if isinstance(tokens, str) else tokens
    if kind in ("dapo", "cispo", "vespo"):
        return objectives.token_mean(mask, Counts(tokens, rows))
    counts = Counts(int(mask.sum()), rows, max_tokens=hyper["max_completion_length"])
    reduction = {
        "bnpo": objectives.token_mean,
        "dr_grpo": objectives.constant_length,
        "luspo": objectives.sequence_sum,
    }.get(kind, objectives.sequence_mean)
    return reduction(mask, counts) / hyper["grad_accum"]


def _trl_clip_metrics(
    ratio: Tensor, advantage: Tensor, mask: Tensor, low: float, high: float, level: str
) -> Result:
    below = ((ratio < 1 - low) & (advantage < 0)).double()
    above = ((ratio > 1 + high) & (advantage > 0)).double()
    if level == "sequence":
        rows = (below[:, :1], above[:, :1])
        means = [r.mean() for r in rows]
    else:
        rows = (masked_mean(below, mask), masked_mean(above, mask))
        means = [share(x, mask) for x in (below, above)]
    return {
        "clip_ratio/low_mean": means[0],
        "clip_ratio/high_mean": means[1],
        "clip_ratio/region_mean": means[0] + means[1],
        "clip_ratio/low_min": rows[0].min(),
        "clip_ratio/high_max": rows[1].max(),
    }


def trl_advantages(case: Case, hyper: Result) -> Result:
    columns = case.raw("rewards_per_func")
    rewards = np.array([[np.nan if r is None else r for r in row] for row in columns], dtype=float)
    groups = np.arange(len(rewards)) // hyper["G"]
    weights = np.array(hyper["reward_weights"])
    if hyper["multi_objective_aggregation"] == "normalize_then_sum":
        columns = [_evidence(column, groups) for column in rewards.T]
        normal = np.array([advantages.group_relative(column, eps=1e-4) for column in columns])
        total = weights @ normal
        return {"advantages": (total - total.mean()) / (total.std(ddof=1) + 1e-4)}
    total = np.nansum(rewards * weights, axis=1)
    total[np.isnan(rewards).all(axis=1)] = np.nan
    found = advantages.group_relative(
        _evidence(total, groups), scale=hyper["scale_rewards"], eps=1e-4
    )
    return {"advantages": found}


def _evidence(rewards: np.ndarray, groups: np.ndarray) -> Evidence:
    return Evidence(rewards_N=rewards, groups_N=groups)
