"""Golden values: numbers that the peers' own code computed, against ours.

    python -m learner.golden FILE

The file holds inputs (`cases`), entries with the peer's options, and what the peer got. Each kind
of entry below translates a peer's options into our functions. Everything is in float64.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner import advantages, objectives, variants
from learner.advantages import Evidence
from learner.objectives import Counts, masked_mean, masked_sum

TOLERANCE = 1e-6
"""Relative to the value expected, absolute below 1; 1e-5 where the peer computed in float32."""

Result = dict[str, Any]


class Case:
    """Inputs of one case as float64 tensors, with an entry's own inputs over them. What the loss is
    differentiated by requires a gradient."""

    def __init__(self, values: dict[str, Any], inputs: dict[str, Any]) -> None:
        self._values = {**values, **inputs}
        self.mask = self["mask"]
        self.rows, self.width = self.mask.shape

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        if isinstance(value, str) and value.startswith("case."):
            return self[value.removeprefix("case.")]
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float64)
        self._values[name] = value
        return value

    def raw(self, name: str) -> Any:
        return self._values[name]

    def leaf(self, name: str) -> Tensor:
        self._values[name] = self[name].detach().clone().requires_grad_(True)
        return self._values[name]

    def spread(self, name: str) -> Tensor:
        """A number per row on all of its tokens."""
        value = self[name]
        return value if value.dim() == 2 else value[:, None].expand(self.rows, self.width)

    def evidence(self, hyper: Result, **given: Any) -> Evidence:
        groups = hyper.get("group_index") or self["group_index"].long().tolist()
        fields: dict[str, Any] = {
            "rewards_N": np.zeros(self.rows),
            "groups_N": np.array(groups),
            "mask_NT": self.mask.numpy() > 0,
        }
        return Evidence(**{**fields, **given})


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def share(what: Tensor, mask: Tensor) -> float:
    """Mean over the masked-in tokens."""
    return float((what.detach() * mask).sum() / mask.sum())


# -- TRL ------------------------------------------------------------------------------------------


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
    weight, keep = objectives.correction(
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
    counts = Counts(int(mask.sum()), rows, limit=hyper["max_completion_length"])
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


# -- verl -----------------------------------------------------------------------------------------


def kl_penalty(case: Case, hyper: Result) -> Result:
    logps = case.leaf("logps")
    names = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
    kind, plus = hyper["type"].removesuffix("+"), "+" * hyper["type"].endswith("+")
    kl = objectives.kl(logps, case["ref_logps"], estimator=names.get(kind, kind) + plus)
    return {"kl": kl, "grad_of_masked_sum": gradient((kl * case.mask).sum(), logps)}


def kl_in_reward(case: Case, hyper: Result) -> Result:
    kl = objectives.kl(case["old_logps"], case["ref_logps"], estimator="k1")
    return {"rewards": case["token_level_rewards"] - hyper["kl_ratio"] * kl}


def _verl_reduction(mask: Tensor, mode: str, hyper: Result) -> Tensor:
    filled = int((mask.sum(dim=1) > 0).sum())
    counts = Counts(
        tokens=hyper.get("batch_num_tokens") or int(mask.sum()),
        sequences=hyper.get("global_batch_size") or filled,
        limit=hyper.get("loss_scale_factor") or mask.shape[1],
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
    weights = _verl_reduction(case.mask, hyper["mode"], hyper)
    total = masked_sum(loss * weights, case.mask).sum()
    return {"loss": total, "grad_loss_mat": gradient(total, loss)}


def verl_policy_loss(case: Case, hyper: Result) -> Result:
    logps, old, mask = case.leaf("logps"), case["old_logps"], case.mask
    advantage, kind = case.spread(hyper["advantage_input"]), hyper["loss_mode"]
    mode = hyper.get("loss_agg_mode", "token-mean")
    surrogate, options = _verl_surrogate(kind, hyper)
    loss, clipped = surrogate(logps, old, advantage, mask, **options)
    if kind in ("gspo", "sapo"):
        mode = "seq-mean-token-mean"
    weights = _verl_reduction(mask, mode, hyper)
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


def _verl_surrogate(kind: str, hyper: Result) -> tuple[Callable[..., Any], Result]:
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
    weight, keep = objectives.correction(gap, mask, kind=kind, low=low, high=high)
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
            evidence, scale="none", singleton="raw"
        ),
        "grpo_passk": lambda: variants.best_of_group(
            evidence, scale=hyper.get("norm_adv_by_std_in_grpo", True), eps=eps
        ),
        "grpo_passk_no_std": lambda: variants.best_of_group(evidence, scale=False),
        "rloo": lambda: advantages.leave_one_out(evidence, singleton="raw"),
        "rloo_vectorized": lambda: advantages.leave_one_out(evidence),
        "opo": lambda: variants.length_weighted(evidence),
        "gpg": lambda: variants.nonzero_scaled(evidence),
        "gdpo_single": lambda: variants.whitened_group_relative(evidence, eps=eps),
        "reinforce_plus_plus_baseline": lambda: advantages.whitened_group_baseline(
            evidence, singleton="raw"
        ),
    }[kind]()
    found = (found if found.ndim == 2 else found[:, None]) * mask
    return {"advantages": found, "returns": found}


def _grpo(evidence: Evidence, hyper: Result, eps: float) -> np.ndarray:
    scale = "group" if hyper.get("norm_adv_by_std_in_grpo", True) else "none"
    return advantages.group_relative(evidence, scale=scale, eps=eps, singleton="raw")


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
    total = (loss * _verl_reduction(case.mask, hyper["loss_agg_mode"], hyper)).sum()
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


# -- OpenRLHF -------------------------------------------------------------------------------------


def openrlhf_policy_loss(case: Case, hyper: Result) -> Result:
    logps, old, mask = case.leaf("logps"), case["old_logps"], case.mask
    advantage = case.spread("advantages")
    sequence = hyper.get("policy_loss_type", "ppo") == "gspo"
    options = {
        "clip_low": hyper["clip_eps_low"],
        "clip_high": hyper["clip_eps_high"],
        "level": "sequence" if sequence else "token",
    }
    _, plain = objectives.clipped(logps, old, advantage, mask, **options)
    loss, _ = objectives.clipped(
        logps, old, advantage, mask, **options, dual_clip=hyper.get("dual_clip")
    )
    metrics = {"ppo_kl": share(old - logps.detach(), mask), "clip_ratio": share(plain, mask)}
    if hyper.get("enable_vllm_is_correction") and not sequence:
        low, high = hyper["vllm_is_truncated_threshold"]
        gap = old - case["sampling_logps"]
        kind = hyper.get("vllm_is_correction_type", "tis")
        ours = {"tis": "token_truncate", "icepop": "token_mask", "seq-mask-tis": "geometric"}
        weight, keep = objectives.correction(gap, mask, kind=ours[kind], low=low, high=high)
        if kind == "seq-mask-tis":
            weight = gap.exp()
        loss = loss * weight * keep
        metrics["vllm_kl"] = share(-gap, mask)
    mean = hyper["token_level_loss"] and not sequence
    weights = _verl_reduction(mask, "token-mean" if mean else "seq-mean-token-mean", {})
    total = (loss * weights).sum()
    return {"loss": total, "grad_logps": gradient(total, logps), "metrics": metrics}


def openrlhf_value_loss(case: Case, hyper: Result) -> Result:
    predicted = case.leaf("vpreds")
    loss, _ = objectives.value_loss(
        predicted, case["values"], case["returns"], clip=hyper["clip_eps"]
    )
    mode = "token-mean" if hyper["token_level_loss"] else "seq-mean-token-mean"
    total = (loss * _verl_reduction(case.mask, mode, {})).sum()
    return {"loss": total, "grad_values": gradient(total, predicted)}


def openrlhf_kl(case: Case, hyper: Result) -> Result:
    kl = objectives.kl(case["logps"], case["ref_logps"], estimator=hyper["kl_estimator"])
    return {"kl": kl.clamp(-10, 10)}


KINDS: dict[str, Callable[[Case, Result], Result]] = {
    kind.__name__: kind
    for kind in (
        *(trl_loss, trl_advantages, kl_penalty, kl_in_reward, agg_loss, verl_policy_loss),
        *(rollout_is, rollout_rs, adv, value_loss, whiten, openrlhf_policy_loss),
        *(openrlhf_value_loss, openrlhf_kl),
    )
}

INSIDE_ONLY = ("advantages", "raw_advantages(=returns-values)", "out", "returns")
"""Where the peer leaves meaningless numbers outside the mask."""


# -- comparing ------------------------------------------------------------------------------------


def compare(entry: Result, cases: Result) -> Iterator[tuple[str, float, float]]:
    """(what, expected, got) for each number of an entry that is out of tolerance.

    Raises ValueError for an entry that we do not know how to compute.
    """
    if entry["kind"] not in KINDS:
        raise ValueError(f"no entries of kind {entry['kind']!r} are known")
    try:
        case = Case(cases[entry["case"]], entry.get("inputs", {}))
        got = KINDS[entry["kind"]](case, entry["hyper"])
    except KeyError as error:
        raise ValueError(f"it has no {error}, or one that is not known") from error
    tolerance = 1e-5 if "float32" in str(entry["hyper"].get("precision")) else TOLERANCE
    for name, expected in _flat(entry["expect"]):
        value: Any = got
        for part in name:
            value = value.get(part, math.nan)
        ours = np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=float)
        theirs = np.asarray(expected, dtype=float)
        inside = np.ones(theirs.shape, dtype=bool)
        if name[-1] in INSIDE_ONLY and theirs.ndim == 2:
            inside = case.mask.numpy() > 0
        if ours.ndim == 2 and theirs.shape[1:] == (1,):
            ours = ours[:, :1]  # the peer writes a sequence's number once
        ours = np.broadcast_to(ours, theirs.shape)
        far = ~(np.abs(ours - theirs) <= tolerance * np.maximum(1.0, np.abs(theirs)))
        for index in np.argwhere(far & inside):
            where = "/".join(name) + "".join(f"[{i}]" for i in index)
            yield where, float(theirs[tuple(index)]), float(ours[tuple(index)])


def _flat(tree: Result, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, (*path, name))
        else:
            yield (*path, name), value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m learner.golden", description=__doc__)
    parser.add_argument("file", type=Path, help="golden values, as JSON")
    path = parser.parse_args(arguments).file
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        entries, cases = golden["entries"], golden["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path} is not a file of golden values: {type(error).__name__}: {error}")
        return 2
    missed = 0
    for entry in entries:
        try:
            misses = [f"{w}: expected {e:.12g}, got {g:.12g}" for w, e, g in compare(entry, cases)]
        except ValueError as error:
            misses = [f"cannot be computed: {error}"]
        missed += bool(misses)
        for line in misses:
            print(f"{entry['name']}: {line}")
    print(f"{len(entries)} entries, {len(entries) - missed} agree, {missed} do not")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
