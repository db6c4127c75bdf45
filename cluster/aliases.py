"""Other systems' names of our metrics, for those who bring their dashboards along."""

from cluster.trackers import gauge_of

TRL = {
    "learner/loss": "loss",
    "learner/grad_norm": "grad_norm",
    "learner/lr": "learning_rate",
    "policy/entropy": "entropy",
    "policy/kl_reference": "kl",
    "policy/clip_fraction": "clip_ratio/region_mean",
    "policy/clip_fraction_low": "clip_ratio/low_mean",
    "policy/clip_fraction_high": "clip_ratio/high_mean",
    "policy/importance_mean": "sampling/importance_sampling_ratio/mean",
    "policy/importance_max": "sampling/importance_sampling_ratio/max",
    "reward/mean": "reward",
    "reward/std": "reward_std",
    "rollout/length": "completions/mean_length",
    "rollout/length_max": "completions/max_length",
    "rollout/truncated": "completions/clipped_ratio",
    "rollout/uniform_groups": "frac_reward_zero_std",
    "time/step": "step_time",
}

VERL = {
    "critic/explained_variance": "critic/vf_explained_var",
    "critic/grad_norm": "critic/grad_norm",
    "critic/value_clip_fraction": "critic/vf_clipfrac",
    "critic/value_loss": "critic/vf_loss",
    "learner/grad_norm": "actor/grad_norm",
    "learner/loss": "actor/pg_loss",
    "learner/lr": "actor/lr",
    "learner/tokens_per_s": "perf/throughput",
    "policy/clip_fraction": "actor/pg_clipfrac",
    "policy/clip_fraction_low": "actor/pg_clipfrac_lower",
    "policy/entropy": "actor/entropy",
    "policy/kl_behaviour": "rollout_corr/k3_kl",
    "policy/kl_reference": "actor/kl_loss",
    "reward/mean": "critic/rewards/mean",
    "rollout/length": "response_length/mean",
    "rollout/length_max": "response_length/max",
    "rollout/truncated": "response_length/clip_ratio",
    "schedule/staleness_mean": "training/off_policy/trajectory_staleness/mean",
    "schedule/staleness_max": "training/off_policy/trajectory_staleness/max",
    "time/publish": "timing_s/update_weights",
    "time/rollout": "timing_s/gen",
    "time/save": "timing_s/save_checkpoint",
    "time/step": "timing_s/step",
    "time/update": "timing_s/update_actor",
}

TABLES = {"": {}, "trl": TRL, "verl": VERL}


def aliases(metrics: dict[str, float], system: str) -> dict[str, float]:
    """The same figures under the names of `system`, where it has one for them."""
    table = TABLES[system]
    found = {table[name]: value for name, value in metrics.items() if name in table}
    if system == "trl":
        for name, value in metrics.items():
            gauge, labels = gauge_of(name)
            if gauge == "cohort_reward_part":
                found[f"rewards/{labels['verifier']}/mean"] = value
    return found
