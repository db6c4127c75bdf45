"""What options of TRL, verl and OpenRLHF are with us, and what they are there where nobody says.

What hangs together (batches, the KL term, switches) is in `coming_from.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cluster.trackers import TRACKERS
from learner.algorithms import ALGORITHMS

Set = Callable[[Any], Mapping[str, Any]]
"""Of a value of theirs: our options with their values."""


def whole(value: Any) -> int:
    """Raises ValueError for what is none: some of theirs may be a share of the run."""
    number = float(value)
    if number != int(number):
        raise ValueError(f"{value!r} is no whole number")
    return int(number)


def to(option: str, kind: Callable[[Any], Any] | None = None) -> Set:
    return lambda value: {option: kind(value) if kind else value}


def one_of(option: str, values: Mapping[str, Any]) -> Set:
    """Raises KeyError for a value that is none of ours."""
    return lambda value: {option: values[str(value)]}


def betas(index: int) -> Set:
    return lambda value: {f"learner.optim.betas.{index}": float(value)}


def both_betas(value: Any) -> Mapping[str, Any]:
    first, second = value
    return {"learner.optim.betas": [float(first), float(second)]}


ALGORITHM = "learner.algorithm"
KL = f"{ALGORITHM}.kl.coef"
ESTIMATORS = {
    "gae": "ppo",
    "group_norm": "grpo",
    "reinforce": "reinforce++",
    "reinforce_baseline": "reinforce++_baseline",
    "reinforce_plus_plus": "reinforce++",
    "reinforce_plus_plus_baseline": "reinforce++_baseline",
}


def algorithm(value: Any) -> Mapping[str, Any]:
    found = ESTIMATORS.get(str(value), str(value))
    if found not in ALGORITHMS:
        raise KeyError(found)
    return {f"{ALGORITHM}.name": found}


LOSSES = {
    "grpo": {"name": "grpo", "reduction": "sequence_mean"},
    "bnpo": {"name": "grpo", "reduction": "token_mean"},
    "dapo": {"name": "grpo", "reduction": "token_mean"},
    "dr_grpo": {"name": "dr_grpo", "scale": "group"},
    "cispo": {"name": "cispo"},
}
"""TRL's word is for how the loss is averaged; its `dapo` and `dr_grpo` are no more than that."""


def loss(value: Any) -> Mapping[str, Any]:
    return {f"{ALGORITHM}.{key}": found for key, found in LOSSES[str(value)].items()}


def tracker(value: Any) -> Mapping[str, Any]:
    names = value if isinstance(value, list) else [value]
    return {"logging.trackers": [name for name in names if name in TRACKERS]}


def where_named(tracker: str) -> Set:
    """The option's value is its folder or key."""
    return lambda value: {"logging.trackers": [tracker]} if value else {}


def clip(value: Any) -> Mapping[str, Any]:
    """Of both sides, where no other option is for one of them."""
    return {f"{ALGORITHM}.clip_low": float(value), f"{ALGORITHM}.clip_high": float(value)}


def positive(option: str, kind: Callable[[Any], Any] = whole) -> Set:
    """Where theirs is -1 or 0 for off, which ours is without."""
    return lambda value: {option: kind(value)} if kind(value) > 0 else {}


def off_is_zero(option: str) -> Set:
    return lambda value: {option: max(whole(value), 0)}


def one_file(option: str) -> Set:
    """Raises ValueError for several, which are to be made one."""

    def set_to(value: Any) -> Mapping[str, Any]:
        names = value if isinstance(value, list) else [value]
        [name] = names
        return {option: name}

    return set_to


def truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def where_true(option: str, value: Any) -> Set:
    """A switch of theirs that is a word of ours; off, it is what we do anyway."""
    return lambda said: {option: value} if truth(said) else {}


BF16 = where_true("model.dtype", "bfloat16")
DISCARD = where_true("schedule.uniform_groups", "discard")
REDUCTIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant_length",
}
"""By verl's words."""
KL_ESTIMATORS = {
    **{name: name for name in ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")},
    "kl": "k1",
    "mse": "k2",
    "low_var_kl": "k3",
}
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def correction(value: Any) -> Mapping[str, Any]:
    return {} if truth(value) else {f"{ALGORITHM}.correction.kind": "none"}


TRL: dict[str, Set] = {
    "adam_beta1": betas(0),
    "adam_beta2": betas(1),
    "beta": to(KL, float),
    "bf16": BF16,
    "dataset_config": to("prompts.subset"),
    "dataset_name": to("prompts.dataset"),
    "dataset_train_split": to("prompts.split"),
    "epsilon": clip,
    "epsilon_high": to(f"{ALGORITHM}.clip_high", float),
    "eval_steps": positive("eval.every"),
    "gradient_checkpointing": to("model.gradient_checkpointing", truth),
    "importance_sampling_level": one_of(
        f"{ALGORITHM}.level", {"token": "token", "sequence": "sequence"}
    ),
    "learning_rate": to("learner.optim.lr", float),
    "lora_alpha": to("model.lora.alpha", whole),
    "lora_r": to("model.lora.rank", whole),
    "loss_type": loss,
    "mask_truncated_completions": to(f"{ALGORITHM}.mask_truncated", truth),
    "max_completion_length": to("sampler.sampling.max_tokens", whole),
    "max_grad_norm": to("learner.optim.clip_norm", float),
    "max_prompt_length": to("prompts.max_tokens", whole),
    "max_steps": positive("steps"),
    "model_name_or_path": to("model.path"),
    "num_generations": to("sampler.group_size", whole),
    "num_iterations": to(f"{ALGORITHM}.epochs", whole),
    "output_dir": to("output_dir"),
    "report_to": tracker,
    "run_name": to("name"),
    "save_steps": off_is_zero("checkpoint.every"),
    "save_total_limit": to("checkpoint.keep", whole),
    "scale_rewards": one_of(
        f"{ALGORITHM}.scale",
        {"group": "group", "True": "group", "batch": "batch", "none": "none", "False": "none"},
    ),
    "seed": to("seed", whole),
    "temperature": to("sampler.sampling.temperature", float),
    "top_k": off_is_zero("sampler.sampling.top_k"),
    "top_p": to("sampler.sampling.top_p", float),
    "vllm_importance_sampling_cap": to(f"{ALGORITHM}.correction.high", float),
    "vllm_importance_sampling_correction": correction,
    "vllm_importance_sampling_mode": one_of(
        f"{ALGORITHM}.correction.kind", {name: name for name in CORRECTIONS}
    ),
    "vllm_tensor_parallel_size": to("sampler.tensor_parallel", whole),
    "warmup_steps": to("learner.optim.warmup_steps", whole),
    "weight_decay": to("learner.optim.weight_decay", float),
}
VERL: dict[str, Set] = {
    "actor_rollout_ref.actor.clip_ratio": clip,
    "actor_rollout_ref.actor.clip_ratio_c": to(f"{ALGORITHM}.dual_clip", float),
    "actor_rollout_ref.actor.clip_ratio_high": to(f"{ALGORITHM}.clip_high", float),
    "actor_rollout_ref.actor.clip_ratio_low": to(f"{ALGORITHM}.clip_low", float),
    "actor_rollout_ref.actor.entropy_coeff": to(f"{ALGORITHM}.entropy.coef", float),
    "actor_rollout_ref.actor.kl_loss_coef": to(KL, float),
    "actor_rollout_ref.actor.kl_loss_type": one_of(f"{ALGORITHM}.kl.estimator", KL_ESTIMATORS),
    "actor_rollout_ref.actor.loss_agg_mode": one_of(f"{ALGORITHM}.reduction", REDUCTIONS),
    "actor_rollout_ref.actor.optim.betas": both_betas,
    "actor_rollout_ref.actor.optim.lr": to("learner.optim.lr", float),
    "actor_rollout_ref.actor.optim.lr_warmup_steps": positive("learner.optim.warmup_steps"),
    "actor_rollout_ref.actor.optim.weight_decay": to("learner.optim.weight_decay", float),
    "actor_rollout_ref.actor.ppo_epochs": to(f"{ALGORITHM}.epochs", whole),
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": to("learner.micro_batch_tokens", whole),
    "actor_rollout_ref.actor.grad_clip": to("learner.optim.clip_norm", float),
    "actor_rollout_ref.model.enable_gradient_checkpointing": to(
        "model.gradient_checkpointing", truth
    ),
    "actor_rollout_ref.model.lora_alpha": to("model.lora.alpha", whole),
    "actor_rollout_ref.model.lora_rank": to("model.lora.rank", whole),
    "actor_rollout_ref.model.path": to("model.path"),
    "actor_rollout_ref.rollout.max_num_seqs": to("sampler.max_running", whole),
    "actor_rollout_ref.rollout.n": to("sampler.group_size", whole),
    "actor_rollout_ref.rollout.temperature": to("sampler.sampling.temperature", float),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": to("sampler.tensor_parallel", whole),
    "actor_rollout_ref.rollout.top_k": off_is_zero("sampler.sampling.top_k"),
    "actor_rollout_ref.rollout.top_p": to("sampler.sampling.top_p", float),
    "actor_rollout_ref.rollout.val_kwargs.n": to("eval.samples", whole),
    "actor_rollout_ref.rollout.val_kwargs.temperature": positive("eval.temperature", float),
    "actor_rollout_ref.rollout.val_kwargs.top_p": to("eval.top_p", float),
    "algorithm.adv_estimator": algorithm,
    "algorithm.filter_groups.enable": DISCARD,
    "algorithm.gamma": to(f"{ALGORITHM}.gamma", float),
    "algorithm.kl_ctrl.kl_coef": to(KL, float),
    "algorithm.kl_penalty": one_of(f"{ALGORITHM}.kl.estimator", KL_ESTIMATORS),
    "algorithm.lam": to(f"{ALGORITHM}.lam", float),
    "algorithm.norm_adv_by_std_in_grpo": one_of(
        f"{ALGORITHM}.scale", {"True": "group", "true": "group", "False": "none", "false": "none"}
    ),
    "critic.model.path": to("learner.critic.path"),
    "critic.optim.lr": to("learner.critic.lr", float),
    "data.max_prompt_length": to("prompts.max_tokens", whole),
    "data.max_response_length": to("sampler.sampling.max_tokens", whole),
    "data.seed": to("seed", whole),
    "data.shuffle": to("prompts.shuffle", truth),
    "data.train_batch_size": to("schedule.groups_per_step", whole),
    "data.train_files": one_file("prompts.dataset"),
    "data.val_files": one_file("eval.dataset"),
    "reward_model.overlong_buffer.len": to("rewards.overlong_buffer", whole),
    "reward_model.overlong_buffer.penalty_factor": to("rewards.overlong_penalty", float),
    "trainer.experiment_name": to("name"),
    "trainer.logger": tracker,
    "trainer.max_actor_ckpt_to_keep": to("checkpoint.keep", whole),
    "trainer.save_freq": off_is_zero("checkpoint.every"),
    "trainer.test_freq": positive("eval.every"),
    "trainer.total_training_steps": to("steps", whole),
}
OPENRLHF: dict[str, Set] = {
    "actor_learning_rate": to("learner.optim.lr", float),
    "adam_betas": both_betas,
    "actor_num_gpus_per_node": to("learner.ranks", whole),
    "advantage_estimator": algorithm,
    "async_train": where_true("schedule.max_staleness", 1),
    "bf16": BF16,
    "critic_learning_rate": to("learner.critic.lr", float),
    "critic_pretrain": to("learner.critic.path"),
    "dual_clip": to(f"{ALGORITHM}.dual_clip", float),
    "dynamic_filtering": DISCARD,
    "entropy_loss_coef": to(f"{ALGORITHM}.entropy.coef", float),
    "eps_clip": clip,
    "eps_clip_low_high": lambda value: {
        f"{ALGORITHM}.clip_low": float(value[0]),
        f"{ALGORITHM}.clip_high": float(value[1]),
    },
    "eval_dataset": to("eval.dataset"),
    "eval_n_samples_per_prompt": to("eval.samples", whole),
    "eval_split": to("eval.split"),
    "eval_temperature": positive("eval.temperature", float),
    "eval_steps": positive("eval.every"),
    "gamma": to(f"{ALGORITHM}.gamma", float),
    "generate_max_len": to("sampler.sampling.max_tokens", whole),
    "gradient_checkpointing": to("model.gradient_checkpointing", truth),
    "init_kl_coef": to(KL, float),
    "input_key": to("prompts.question"),
    "kl_estimator": one_of(f"{ALGORITHM}.kl.estimator", KL_ESTIMATORS),
    "l2": to("learner.optim.weight_decay", float),
    "label_key": to("prompts.answer"),
    "lambd": to(f"{ALGORITHM}.lam", float),
    "lora_alpha": to("model.lora.alpha", whole),
    "lora_rank": off_is_zero("model.lora.rank"),
    "max_ckpt_num": to("checkpoint.keep", whole),
    "max_epochs": to(f"{ALGORITHM}.epochs", whole),
    "max_norm": to("learner.optim.clip_norm", float),
    "n_samples_per_prompt": to("sampler.group_size", whole),
    "overlong_buffer_len": to("rewards.overlong_buffer", whole),
    "overlong_penalty_factor": to("rewards.overlong_penalty", float),
    "pretrain": to("model.path"),
    "prompt_data": to("prompts.dataset"),
    "prompt_max_len": to("prompts.max_tokens", whole),
    "prompt_split": to("prompts.split"),
    "rollout_batch_size": to("schedule.groups_per_step", whole),
    "save_path": to("output_dir"),
    "save_steps": off_is_zero("checkpoint.every"),
    "seed": to("seed", whole),
    "temperature": to("sampler.sampling.temperature", float),
    "top_p": to("sampler.sampling.top_p", float),
    "value_clip": to("learner.critic.clip", float),
    "use_kl_loss": where_true(f"{ALGORITHM}.kl.placement", "loss"),
    "use_tensorboard": where_named("tensorboard"),
    "use_wandb": where_named("wandb"),
    "vllm_num_engines": to("sampler.replicas", whole),
    "vllm_tensor_parallel_size": to("sampler.tensor_parallel", whole),
    "zero_stage": to("learner.zero.stage", whole),
}
TABLES = {"trl": TRL, "verl": VERL, "openrlhf": OPENRLHF}

DEFAULTS: dict[str, dict[str, Any]] = {
    "trl": {
        "adam_beta2": 0.999,
        "gradient_checkpointing": True,
        "learning_rate": 1e-6,
        "max_completion_length": 256,
        "num_generations": 8,
        "weight_decay": 0.0,
    },
    "verl": {
        "actor_rollout_ref.actor.optim.betas": [0.9, 0.999],
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.optim.weight_decay": 0.01,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
        "actor_rollout_ref.rollout.n": 1,
        "algorithm.adv_estimator": "gae",
        "data.max_prompt_length": 512,
        "data.max_response_length": 512,
        "data.train_batch_size": 1024,
    },
    "openrlhf": {
        "actor_learning_rate": 1e-6,
        "adam_betas": [0.9, 0.95],
        "advantage_estimator": "gae",
        "critic_learning_rate": 9e-6,
        "generate_max_len": 1024,
        "l2": 0.0,
        "n_samples_per_prompt": 1,
        "prompt_max_len": 1024,
        "rollout_batch_size": 1024,
        "train_batch_size": 128,
    },
}
"""What they do where nobody says, as far as ours differs; the rest is the preset's."""
RENAMED = {
    "actor.adam.lr": "actor_learning_rate",
    "actor.model_name_or_path": "pretrain",
    "algo.advantage.estimator": "advantage_estimator",
    "algo.kl.init_coef": "init_kl_coef",
    "data.prompt_dataset": "prompt_data",
}
"""OpenRLHF's newer names; of the others, the last part is the older name."""
