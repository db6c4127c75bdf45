"""`python -m cluster config from-trl | from-verl | from-openrlhf FILE`: the settings of a run of
theirs as a recipe of ours, and a list of what has no equivalent. Best effort: it is to be read.

FILE is YAML, or a shell script with their command line: options as `--key value` or `key=value`.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.config import flatten
from cluster.trackers import TRACKERS
from learner.algorithms import ALGORITHMS

Set = Callable[[Any], Mapping[str, Any]]
"""Of a value of theirs: our options with their values."""


def to(option: str, kind: Callable[[Any], Any] | None = None) -> Set:
    return lambda value: {option: kind(value) if kind else value}


def one_of(option: str, values: Mapping[str, Any]) -> Set:
    """Raises KeyError for a value that is none of ours."""
    return lambda value: {option: values[str(value)]}


def betas(index: int) -> Set:
    return lambda value: {f"learner.optim.betas.{index}": float(value)}


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
    return {"learner.algorithm.name": found}


LOSSES = {
    "grpo": {"name": "grpo", "reduction": "sequence_mean"},
    "bnpo": {"name": "grpo", "reduction": "token_mean"},
    "dapo": {"name": "grpo", "reduction": "token_mean"},
    "dr_grpo": {"name": "dr_grpo", "scale": "group"},
    "cispo": {"name": "cispo"},
}
"""TRL's word is for how the loss is averaged; its `dapo` and `dr_grpo` are no more than that."""


def loss(value: Any) -> Mapping[str, Any]:
    return {f"learner.algorithm.{key}": found for key, found in LOSSES[str(value)].items()}


def tracker(value: Any) -> Mapping[str, Any]:
    names = value if isinstance(value, list) else [value]
    return {"logging.trackers": [name for name in names if name in TRACKERS]}


def clip(value: Any) -> Mapping[str, Any]:
    """Of both sides, where no other option is for one of them."""
    return {f"{ALGORITHM}.clip_low": float(value), f"{ALGORITHM}.clip_high": float(value)}


def positive(option: str, kind: Callable[[Any], Any] = int) -> Set:
    """Where theirs is -1 or 0 for off, which ours is without."""
    return lambda value: {option: kind(value)} if kind(value) > 0 else {}


def off_is_zero(option: str) -> Set:
    return lambda value: {option: max(int(value), 0)}


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
    "beta": to(f"{ALGORITHM}.kl.coef", float),
    "bf16": lambda value: {"model.dtype": "bfloat16"} if truth(value) else {},
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
    "lora_alpha": to("model.lora.alpha", int),
    "lora_r": to("model.lora.rank", int),
    "loss_type": loss,
    "mask_truncated_completions": to(f"{ALGORITHM}.mask_truncated", truth),
    "max_completion_length": to("sampler.sampling.max_tokens", int),
    "max_grad_norm": to("learner.optim.clip_norm", float),
    "max_prompt_length": to("prompts.max_tokens", int),
    "max_steps": positive("steps"),
    "model_name_or_path": to("model.path"),
    "num_generations": to("sampler.group_size", int),
    "num_iterations": to(f"{ALGORITHM}.epochs", int),
    "output_dir": to("output_dir"),
    "report_to": tracker,
    "run_name": to("name"),
    "save_steps": off_is_zero("checkpoint.every"),
    "save_total_limit": to("checkpoint.keep", int),
    "scale_rewards": one_of(
        f"{ALGORITHM}.scale",
        {"group": "group", "True": "group", "batch": "batch", "none": "none", "False": "none"},
    ),
    "seed": to("seed", int),
    "temperature": to("sampler.sampling.temperature", float),
    "top_k": to("sampler.sampling.top_k", int),
    "top_p": to("sampler.sampling.top_p", float),
    "vllm_importance_sampling_cap": to(f"{ALGORITHM}.correction.high", float),
    "vllm_importance_sampling_correction": correction,
    "vllm_importance_sampling_mode": one_of(
        f"{ALGORITHM}.correction.kind", {name: name for name in CORRECTIONS}
    ),
    "vllm_tensor_parallel_size": to("sampler.tensor_parallel", int),
    "warmup_steps": to("learner.optim.warmup_steps", int),
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
    "actor_rollout_ref.actor.optim.lr": to("learner.optim.lr", float),
    "actor_rollout_ref.actor.optim.lr_warmup_steps": positive("learner.optim.warmup_steps"),
    "actor_rollout_ref.actor.optim.weight_decay": to("learner.optim.weight_decay", float),
    "actor_rollout_ref.actor.ppo_epochs": to(f"{ALGORITHM}.epochs", int),
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": to("learner.micro_batch_tokens", int),
    "actor_rollout_ref.actor.grad_clip": to("learner.optim.clip_norm", float),
    "actor_rollout_ref.model.enable_gradient_checkpointing": to(
        "model.gradient_checkpointing", truth
    ),
    "actor_rollout_ref.model.lora_alpha": to("model.lora.alpha", int),
    "actor_rollout_ref.model.lora_rank": to("model.lora.rank", int),
    "actor_rollout_ref.model.path": to("model.path"),
    "actor_rollout_ref.rollout.max_num_seqs": to("sampler.max_running", int),
    "actor_rollout_ref.rollout.n": to("sampler.group_size", int),
    "actor_rollout_ref.rollout.temperature": to("sampler.sampling.temperature", float),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": to("sampler.tensor_parallel", int),
    "actor_rollout_ref.rollout.top_k": off_is_zero("sampler.sampling.top_k"),
    "actor_rollout_ref.rollout.top_p": to("sampler.sampling.top_p", float),
    "actor_rollout_ref.rollout.val_kwargs.n": to("eval.samples", int),
    "actor_rollout_ref.rollout.val_kwargs.temperature": positive("eval.temperature", float),
    "actor_rollout_ref.rollout.val_kwargs.top_p": to("eval.top_p", float),
    "algorithm.adv_estimator": algorithm,
    "algorithm.filter_groups.enable": DISCARD,
    "algorithm.gamma": to(f"{ALGORITHM}.gamma", float),
    "algorithm.kl_ctrl.kl_coef": to(KL, float),
    "algorithm.lam": to(f"{ALGORITHM}.lam", float),
    "algorithm.norm_adv_by_std_in_grpo": one_of(
        f"{ALGORITHM}.scale", {"True": "group", "true": "group", "False": "none", "false": "none"}
    ),
    "critic.model.path": to("learner.critic.path"),
    "critic.optim.lr": to("learner.critic.lr", float),
    "data.max_prompt_length": to("prompts.max_tokens", int),
    "data.max_response_length": to("sampler.sampling.max_tokens", int),
    "data.seed": to("seed", int),
    "data.shuffle": to("prompts.shuffle", truth),
    "data.train_batch_size": to("schedule.groups_per_step", int),
    "data.train_files": one_file("prompts.dataset"),
    "data.val_files": one_file("eval.dataset"),
    "reward_model.overlong_buffer.len": to("rewards.overlong_buffer", int),
    "reward_model.overlong_buffer.penalty_factor": to("rewards.overlong_penalty", float),
    "trainer.experiment_name": to("name"),
    "trainer.logger": tracker,
    "trainer.max_actor_ckpt_to_keep": to("checkpoint.keep", int),
    "trainer.save_freq": off_is_zero("checkpoint.every"),
    "trainer.test_freq": positive("eval.every"),
    "trainer.total_training_steps": to("steps", int),
}
OPENRLHF: dict[str, Set] = {
    "actor_learning_rate": to("learner.optim.lr", float),
    "actor.adam.lr": to("learner.optim.lr", float),
    "actor_num_gpus_per_node": to("learner.ranks", int),
    "advantage_estimator": algorithm,
    "bf16": lambda _: {"model.dtype": "bfloat16"},
    "critic_learning_rate": to("learner.critic.lr", float),
    "critic_pretrain": to("learner.critic.path"),
    "dynamic_filtering": DISCARD,
    "entropy_loss_coef": to(f"{ALGORITHM}.entropy.coef", float),
    "eps_clip": clip,
    "eps_clip_low_high": lambda value: {
        f"{ALGORITHM}.clip_low": float(value[0]),
        f"{ALGORITHM}.clip_high": float(value[1]),
    },
    "eval_dataset": to("eval.dataset"),
    "eval_steps": positive("eval.every"),
    "gamma": to(f"{ALGORITHM}.gamma", float),
    "generate_max_len": to("sampler.sampling.max_tokens", int),
    "gradient_checkpointing": lambda _: {"model.gradient_checkpointing": True},
    "init_kl_coef": to(f"{ALGORITHM}.kl.coef", float),
    "input_key": to("prompts.question"),
    "kl_estimator": to(f"{ALGORITHM}.kl.estimator"),
    "label_key": to("prompts.answer"),
    "lambd": to(f"{ALGORITHM}.lam", float),
    "max_ckpt_num": to("checkpoint.keep", int),
    "max_epochs": to(f"{ALGORITHM}.epochs", int),
    "max_norm": to("learner.optim.clip_norm", float),
    "n_samples_per_prompt": to("sampler.group_size", int),
    "overlong_buffer_len": to("rewards.overlong_buffer", int),
    "overlong_penalty_factor": to("rewards.overlong_penalty", float),
    "pretrain": to("model.path"),
    "prompt_data": to("prompts.dataset"),
    "prompt_max_len": to("prompts.max_tokens", int),
    "rollout_batch_size": to("schedule.groups_per_step", int),
    "save_path": to("output_dir"),
    "save_steps": off_is_zero("checkpoint.every"),
    "seed": to("seed", int),
    "temperature": to("sampler.sampling.temperature", float),
    "top_p": to("sampler.sampling.top_p", float),
    "use_kl_loss": lambda _: {f"{ALGORITHM}.kl.placement": "loss"},
    "use_tensorboard": lambda _: {"logging.trackers": ["tensorboard"]},
    "use_wandb": lambda _: {"logging.trackers": ["wandb"]},
    "vllm_num_engines": to("sampler.replicas", int),
    "vllm_tensor_parallel_size": to("sampler.tensor_parallel", int),
    "zero_stage": to("learner.zero.stage", int),
}
SYSTEMS = {"trl": TRL, "verl": VERL, "openrlhf": OPENRLHF}


@dataclass(frozen=True, slots=True)
class Translation:
    options: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Theirs, that have no equivalent, and why where that is known"""

    def settle(self, *names: str) -> None:
        """These of theirs have an equivalent after all, together."""
        self.left[:] = [each for each in self.left if each.partition("=")[0] not in names]

    def text(self, system: str, source: str) -> str:
        """A recipe, with what was left out as comments at its end."""
        tree: dict[str, Any] = {}
        for option, value in self.options.items():
            *path, last = option.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = value
        lines = [
            f"# From {system}'s {source}; their numbers, and what we have no option for below."
        ]
        lines.append(yaml.safe_dump(tree, sort_keys=False).rstrip())
        lines += [f"# no equivalent: {each}" for each in self.left]
        return "\n".join(lines) + "\n"


def translate(system: str, path: Path) -> Translation:
    """Raises ValueError for a system or a file that is none."""
    if system not in SYSTEMS:
        raise ValueError(f"{system!r} is none of {', '.join(SYSTEMS)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    theirs = read(path)
    if not theirs:
        raise ValueError(f"{path} has no options: YAML, or a script with --key value or key=value")
    table = SYSTEMS[system]
    found = Translation({"learner.algorithm.preset": system})
    # What is for one side goes over what is for both, whatever came first.
    for name in sorted(theirs, key=lambda name: (table.get(name) is not clip, name == SCALE)):
        value = theirs[name]
        try:
            found.options.update(table[name](value))
        except (KeyError, ValueError, TypeError, IndexError):
            found.left.append(f"{name}={value!r}")
    _pair(found.options)
    if system == "trl":
        _batch_of_trl(theirs, found)
    if system == "verl":
        _kl_of_verl(theirs, found)
        _batches_of_verl(theirs, found)
    if system == "openrlhf":
        _batches_of_openrlhf(theirs, found)
    return found


SCALE = "scale_rewards"
"""Of TRL; its word is the last on what `loss_type` sets, too."""
ACTOR = "actor_rollout_ref.actor"
KL_PLACES = (
    (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_coef", "loss"),
    ("algorithm.use_kl_in_reward", "algorithm.kl_ctrl.kl_coef", "reward"),
)
BATCH, MINIBATCH = "data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"


def _kl_of_verl(theirs: dict[str, Any], found: Translation) -> None:
    """Two places with a switch and a coefficient each; both are off unless they are asked for."""
    found.options.pop(KL, None)
    used = ""
    for switch, name, place in KL_PLACES:
        coef = theirs.get(name, 0.001)
        if truth(theirs.get(switch, False)) and not used:
            found.options[KL], found.options[f"{ALGORITHM}.kl.placement"] = float(coef), place
            found.settle(switch)
            used = switch
        elif truth(theirs.get(switch, False)):
            found.left.append(f"{name}={coef!r}: with us the KL term is in one place")
        else:
            found.settle(switch)
            if name in theirs:
                found.left.append(f"{name}={coef!r}: without {switch}=True it is not used")


def _batches_of_verl(theirs: dict[str, Any], found: Translation) -> None:
    """Its batches and mini-batches count prompts."""
    if BATCH in theirs and MINIBATCH in theirs:
        _parts(found, int(theirs[BATCH]), int(theirs[MINIBATCH]), MINIBATCH)


def _batches_of_openrlhf(theirs: dict[str, Any], found: Translation) -> None:
    """Its rollout batch counts prompts, its training batch completions."""
    prompts, trained = "rollout_batch_size", "train_batch_size"
    if prompts in theirs and trained in theirs:
        completions = int(theirs[prompts]) * int(theirs.get("n_samples_per_prompt", 1))
        _parts(found, completions, int(theirs[trained]), trained)


def _parts(found: Translation, whole: int, part: int, name: str) -> None:
    """Optimizer steps of one table."""
    parts, rest = divmod(whole, part)
    if parts and not rest:
        found.options[f"{ALGORITHM}.minibatches"] = parts
        found.settle(name)


def _pair(options: dict[str, Any]) -> None:
    """The two running means of Adam are one option of ours."""
    found = [options.pop(f"learner.optim.betas.{i}", None) for i in (0, 1)]
    if any(beta is not None for beta in found):
        options["learner.optim.betas"] = [
            beta if beta is not None else usual
            for beta, usual in zip(found, (0.9, 0.999), strict=True)
        ]


def _batch_of_trl(theirs: dict[str, Any], found: Translation) -> None:
    """Their batch counts completions per device; ours, groups of all ranks together."""
    names = (DEVICE, ACCUMULATION, GENERATION)
    if DEVICE not in theirs:
        return
    accumulation = int(theirs.get(ACCUMULATION, 1))
    generation = int(theirs.get(GENERATION, accumulation))
    completions, group = int(theirs[DEVICE]) * generation, int(theirs.get("num_generations", 8))
    found.settle(*names)
    if completions % group or generation % accumulation:
        found.left.extend(f"{name}={theirs[name]!r}" for name in names if name in theirs)
        found.left.append(
            f"{completions} completions on one device are no whole number of groups of {group}: "
            "set schedule.groups_per_step to what all devices sample for a step together"
        )
        return
    found.options["schedule.groups_per_step"] = completions // group
    if generation > accumulation:
        found.options[f"{ALGORITHM}.minibatches"] = generation // accumulation
    found.left.append(
        f"{DEVICE}={theirs[DEVICE]!r}: {completions} completions on one device are "
        f"schedule.groups_per_step={completions // group}; multiply by their number of devices"
    )


DEVICE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
GENERATION = "steps_per_generation"


OPTION = re.compile(r"\+{0,2}([A-Za-z_][\w./-]*)=(.*)", re.S)


def read(path: Path) -> dict[str, Any]:
    """Options by their dotted names."""
    text = path.read_text()
    if path.suffix in (".yaml", ".yml"):
        tree = yaml.safe_load(text)
        return dict(flatten(tree)) if isinstance(tree, dict) else {}
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if match := OPTION.fullmatch(word.removeprefix("--")):
            found[match[1]] = _value(match[2])
        elif word.startswith("--") and word != "--":
            values = []
            while words and not words[0].startswith("--"):
                if OPTION.fullmatch(words[0]):
                    break
                values.append(_value(words.pop(0)))
            found[word[2:]] = values[0] if len(values) == 1 else (values or True)
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
