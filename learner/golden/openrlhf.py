"""OpenRLHF: policy loss with its correction, value loss, KL."""

from learner import objectives
from learner.golden.case import Case, Result, gradient, share
from learner.golden.verl import reduction_of


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
        weight, keep, _ = objectives.correction(gap, mask, kind=ours[kind], low=low, high=high)
        if kind == "seq-mask-tis":
            weight = gap.exp()
        loss = loss * weight * keep
        metrics["vllm_kl"] = share(-gap, mask)
    mean = hyper["token_level_loss"] and not sequence
    weights = reduction_of(mask, "token-mean" if mean else "seq-mean-token-mean", {})
    total = (loss * weights).sum()
    return {"loss": total, "grad_logps": gradient(total, logps), "metrics": metrics}


def openrlhf_value_loss(case: Case, hyper: Result) -> Result:
    predicted = case.leaf("vpreds")
    loss, _ = objectives.value_loss(
        predicted, case["values"], case["returns"], clip=hyper["clip_eps"]
    )
    mode = "token-mean" if hyper["token_level_loss"] else "seq-mean-token-mean"
    total = (loss * reduction_of(case.mask, mode, {})).sum()
    return {"loss": total, "grad_values": gradient(total, predicted)}


def openrlhf_kl(case: Case, hyper: Result) -> Result:
    kl = objectives.kl(case["logps"], case["ref_logps"], estimator=hyper["kl_estimator"])
    return {"kl": kl.clamp(-10, 10)}
