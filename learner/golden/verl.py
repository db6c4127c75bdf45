"""verl: policy losses, aggregation, KL, rollout correction, advantages, value loss."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner import advantages, objectives
from learner.advantages import Evidence
from learner.golden import variants
from learner.golden.case import Case, Result, gradient, share
from learner.objectives import Counts, masked_mean, masked_sum


def kl_penalty(case: Case, hyper: Result) -> Result:
    logps = case.leaf("logps")
    names = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
    kind, plus = hyper["type"].removesuffix("+"), "+" * hyper["type"].endswith("+")
    kl = objectives.kl(logps, case["ref_logps"], estimator=names.get(kind, kind) + plus)
    return {"kl": kl, "grad_of_masked_sum": gradient((kl * case.mask).sum(), logps)}


def kl_in_reward(case: Case, hyper: Result) -> Result:
    kl = objectives.kl(case["old_logps"], case["ref_logps"], estimator="k1")
    return {"rewards": case["token_level_rewards"] - hyper["kl_ratio"] * kl}


def reduction_of(mask: Tensor, mode: str, hyper: Result) -> Tensor:
    filled = int((mask.sum(dim=1) > 0).sum())
    counts = Counts(
        tokens=hyper.get("batch_num_tokens") or int(mask.sum()),
        sequences=hyper.get("global_batch_size") or filled,
        max_tokens=hyper.get("loss_scale_factor") or mask.shape[1],
    )
    reduction = {
        "token-mean": objectives.token_mean,
        "seq-mean-token-sum": objectives.sequence_sum,
        "seq-mean-token-sum-norm": objectives.constant_length,
        "seq-mean-token-mean": objectives.sequence_mean,
        "token-sum": lambda mask, counts: mask,
    }[mode]
    return reduction(mask, counts) * hyper.get("dp_size", 1)


def agg_loss(case: Case, hyper: Result) -> Result:
    loss = case.leaf("loss_mat")
    weights = reduction_of(case.mask, hyper["mode"], hyper)
    total = masked_sum(loss * weights, case.mask).sum()
    return {"loss": total, "grad_loss_mat": gradient(total, loss)}


def verl_policy_loss(case: Case, hyper: Result) -> Result:
    logps, old, mask = case.leaf("logps"), case["old_logps"], case.mask
    advantage, kind = case.spread(hyper["advantage_input"]), hyper["loss_mode"]
    mode = hyper.get("loss_agg_mode", "token-mean")
    surrogate, options = _surrogate(kind, hyper)
    loss, clipped = surrogate(logps, old, advantage, mask, **options)
    if kind in ("gspo", "sapo"):
        mode = "seq-mean-token-mean"
    weights = reduction_of(mask, mode, hyper)
    if kind == "geo_mean":
        weights = objectives.sequence_mean(mask, Counts(0, len(mask)))
    if hyper["rollout_is_weights"]:
        extra = case["rollout_is_weights"]
        if kind == "geo_mean":
            extra = masked_mean((extra + 1e-10).log(), mask).exp()
        loss = loss * extra
    total = masked_sum(loss * weights, mask).sum()
    lower = torch.zeros_like(clipped)
    if kind == "vanilla":
        plain = {name: options[name] for name in ("clip_low", "clip_high")}
        bound, clipped = objectives.clipped(logps, old, advantage, mask, **plain)
        lower = (advantage < 0) & (bound > -options["dual_clip"] * advantage)
    elif kind == "geo_mean":
        gap = logps.detach() - old
        out = (gap < -options["clip_low"]) | (gap > options["clip_high"])
        clipped, lower = out & (advantage > 0), out & (advantage < 0)
    drift = old - logps.detach()
    metrics = {
        "actor/pg_clipfrac": share(clipped, mask),
        "actor/pg_clipfrac_lower": share(lower, mask),
        "actor/ppo_kl": share(drift.abs() if kind == "kl_cov" else drift, mask),
    }
    return {"loss": total, "grad_logps": gradient(total, logps), "metrics": metrics}


def _surrogate(kind: str, hyper: Result) -> tuple[Callable[..., Any], Result]:
    clip = {"clip_low": hyper.get("clip_ratio_low"), "clip_high": hyper.get("clip_ratio_high")}
    ceiling = hyper.get("clip_ratio_c")
    return {
        "vanilla": (objectives.clipped, {**clip, "dual_clip": ceiling}),
        "gspo": (objectives.clipped, {**clip, "level": "sequence_token"}),
        "cispo": (objectives.detached, clip),
        "geo_mean": (objectives.geometric_mean, clip),
        "gpg": (objectives.likelihood, {}),
        "reinforce": (objectives.likelihood, {}),
        "sapo": (
            objectives.sigmoid_gated,
            {"tau_positive": hyper.get("tau_pos"), "tau_negative": hyper.get("tau_neg")},
        ),
        "dppo_tv": (variants.divergence_gated, {**clip, "limit": ceiling, "divergence": "tv"}),
        "dppo_kl": (variants.divergence_gated, {**clip, "limit": ceiling, "divergence": "kl"}),
        "dro": (variants.quadratic, {"beta": hyper.get("dro_beta")}),
        "clip_cov": (
            variants.covariance_clipped,
            {
                **clip,
                "share": hyper.get("clip_cov_ratio"),
                "low": hyper.get("clip_cov_lb"),
                "high": hyper.get("clip_cov_ub"),
            },
        ),
        "kl_cov": (
            variants.covariance_penalised,
            {"share": hyper.get("kl_cov_ratio"), "coef": hyper.get("ppo_kl_coef")},
        ),
    }[kind]


def rollout_is(case: Case, hyper: Result) -> Result:
    low, high = _band(hyper["threshold"])
    kind = f"{hyper['rollout_is']}_{'truncate' if low is None else 'mask'}"
    gap, mask = case["old_logps"] - case["sampling_logps"], case.mask
    weight, keep, _ = objectives.correction(gap, mask, kind=kind, low=low, high=high)
    weight = weight * keep * mask
    if hyper["batch_normalize"]:
        if hyper["rollout_is"] == "token":
            mean = weight.sum() / mask.sum()
        else:
            mean = masked_mean(weight, mask).sum() / (mask.sum(dim=1) > 0).sum()
        weight = weight / mean
    return {"weights": weight}


def _band(threshold: str | float) -> tuple[float | None, float]:
    """ "0.5_2.0" -> (0.5, 2.0); 2.0 -> (None, 2.0)."""
    low, _, high = str(threshold).rpartition("_")
    return (float(low) if low else None), float(high)


def rollout_rs(case: Case, hyper: Result) -> Result:
    gap = (case["old_logps"] - case["sampling_logps"]).clamp(-20, 20)
    mask = keep = case.mask
    bounds = str(hyper["threshold"]).split(",")
    for option, threshold in zip(hyper["rollout_rs"].split(","), bounds, strict=True):
        level, _, estimator = option.rpartition("_")
        value = -gap if estimator == "k1" else objectives.kl(-gap, 0 * gap, estimator=estimator)
        if level == "seq_sum":
            value = masked_sum(value, mask)
        elif level == "seq_mean":
            value = masked_mean(value, mask)
        elif level == "seq_max":
            value = torch.where(mask > 0, value, -math.inf).max(dim=1, keepdim=True).values
            value = torch.where(value.isinf(), 0.0, value)
        low, high = _band(threshold)
        if estimator == "k1":
            low = 1 / high if low is None else low
            passes = (value >= math.log(low)) & (value <= math.log(high))
        else:
            passes = value <= high
        keep = keep * passes
    return {"mask": keep}


def adv(case: Case, hyper: Result) -> Result:
    kind, mask = hyper["estimator"], case.mask.numpy() > 0
    token_rewards = case[hyper.get("rewards_input", "token_level_rewards")].numpy()
    by_token = "rewards_input" in hyper or "optimal" in kind or kind == "remax"
    # Where one number per row is wanted, the peer adds up every cell, masked or not.
    given = {"extra_NT": token_rewards} if by_token else {"rewards_N": token_rewards.sum(axis=1)}
    if kind == "gae":
        given["values_NT"] = case["values"].numpy()
    evidence, eps = case.evidence(hyper, **given), hyper.get("epsilon", 1e-6)
    if kind == "gae":
        options = {"gamma": hyper["gamma"], "lam": hyper["lam"]}
        raw = advantages.gae(evidence, **options)
        return {
            "advantages": advantages.whitened_gae(evidence, **options),
            "returns": raw + evidence.values_NT,
            "raw_advantages(=returns-values)": raw,
        }
    if kind == "reinforce_plus_plus":
        found = advantages.whitened_returns(evidence, gamma=hyper["gamma"])
        returns = advantages.discounted(evidence.token_rewards_NT, mask, hyper["gamma"])
        return {"advantages": found, "returns": returns}
    returns = None
    if kind == "remax" or "optimal" in kind:
        returns = advantages.discounted(evidence.token_rewards_NT, mask, 1.0)
    if kind == "remax":
        baseline = case["reward_baselines"].numpy()
        # One reward per row: the return of each token less the greedy completion's.
        return {"advantages": (returns - baseline[:, None]) * mask, "returns": returns}
    if "optimal" in kind:
        return {"advantages": _optimal(case, evidence, kind), "returns": returns}
    found = {
        "grpo": lambda: _grpo(evidence, hyper, eps),
        "grpo_vectorized": lambda: _grpo(evidence, hyper, eps),
        "grpo_no_std(dr_grpo)": lambda: advantages.group_relative(
            evidence, scale="none", guarded=False
        ),
        "grpo_passk": lambda: variants.best_of_group(
            evidence, scale=hyper.get("norm_adv_by_std_in_grpo", True), eps=eps
        ),
        "grpo_passk_no_std": lambda: variants.best_of_group(evidence, scale=False),
        "rloo": lambda: advantages.leave_one_out(evidence, guarded=False),
        "rloo_vectorized": lambda: advantages.leave_one_out(evidence),
        "opo": lambda: variants.length_weighted(evidence),
        "gpg": lambda: variants.nonzero_scaled(evidence),
        "gdpo_single": lambda: variants.whitened_group_relative(evidence, eps=eps),
        "reinforce_plus_plus_baseline": lambda: advantages.whitened_group_baseline(
            evidence, guarded=False
        ),
    }[kind]()
    found = (found if found.ndim == 2 else found[:, None]) * mask
    return {"advantages": found, "returns": found}


def _grpo(evidence: Evidence, hyper: Result, eps: float) -> np.ndarray:
    scale = "group" if hyper.get("norm_adv_by_std_in_grpo", True) else "none"
    return advantages.group_relative(evidence, scale=scale, eps=eps, guarded=False)


def _optimal(case: Case, evidence: Evidence, kind: str) -> np.ndarray:
    logps, squares = case["old_logps"].numpy(), case["sum_pi_squared"].numpy()
    weights = case["rollout_is_weights"].numpy() if kind.endswith("_is") else None
    if not kind.startswith("tir"):
        return variants.optimal_token_baseline(evidence, logps, squares, weights)
    # The same on rows without their holes. What a row is short of counts for nothing.
    mask = evidence.mask_NT
    order = np.argsort(~mask, axis=1, kind="stable")

    def compact(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, order, axis=1)

    squeezed = case.evidence(
        {"group_index": evidence.groups_N.tolist()},
        mask_NT=compact(mask),
        extra_NT=compact(evidence.extra_NT * mask),
    )
    found = variants.optimal_token_baseline(
        squeezed, compact(logps), compact(squares), None if weights is None else compact(weights)
    )
    result = np.zeros(mask.shape)
    np.put_along_axis(result, order, found, axis=1)
    return result * mask


def value_loss(case: Case, hyper: Result) -> Result:
    predicted = case.leaf("vpreds")
    loss, clipped = objectives.value_loss(
        predicted, case["values"], case["returns"], clip=hyper["cliprange_value"]
    )
    total = (loss * reduction_of(case.mask, hyper["loss_agg_mode"], hyper)).sum()
    return {
        "loss": total,
        "grad_vpreds": gradient(total, predicted),
        "clipfrac": share(clipped, case.mask),
    }


def whiten(case: Case, hyper: Result) -> Result:
    """The peer moves the cells outside the mask, too; ours stay 0 and are not compared."""
    values, mask = case["values"].numpy(), case.mask.numpy() > 0
    found = advantages.whiten(values, mask)
    return {"out": found if hyper["shift_mean"] else found + values[mask].mean() * mask}
