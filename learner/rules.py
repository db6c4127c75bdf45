"""Options of the learner that cannot be meant together."""

from learner.algorithms import build
from learner.config import AlgorithmConfig, CriticConfig, KLConfig, LearnerConfig
from learner.presets import PRESETS


def contradictions(
    config: LearnerConfig,
    *,
    group_size: int,
    groups_per_step: int,
    samples_all_tokens: bool,
    has_adapters: bool,
) -> list[str]:
    """Options of the learner that cannot be meant together, one sentence each, with the way out.

    Raises ValueError as `build` does.
    """
    options, kl = config.algorithm, config.algorithm.kl
    row = build(options)
    name, broken = f"learner.algorithm.name={options.name}", []
    if group_size < row.siblings:
        broken.append(
            f"{name} compares the completions of one prompt, but sampler.group_size={group_size}: "
            f"set it to {row.siblings} or more, or take a row with another baseline (reinforce++, "
            "remax, ppo)"
        )
    if options.minibatches > groups_per_step:
        broken.append(
            f"learner.algorithm.minibatches={options.minibatches} is more than "
            f"schedule.groups_per_step={groups_per_step}: a group is never split, so lower it"
        )
    if not row.supervised and not samples_all_tokens and options.anchor != "recomputed":
        broken.append(
            "sampler.sampling.top_p or top_k cuts off tokens, so the sampler's logprobs are not "
            "the policy's: set learner.algorithm.anchor=recomputed, or top_p=1 and top_k=0"
        )
    if options.correction.kind != "none" and options.anchor != "recomputed":
        broken.append(
            f"learner.algorithm.correction.kind={options.correction.kind} corrects the gap between "
            "the recomputed anchor and the sampler's logprobs, but learner.algorithm.anchor="
            "behaviour: the ratio holds that gap already; set anchor=recomputed, or kind=none"
        )
    low, high = options.correction.low, options.correction.high
    if low is not None and high is not None and low >= high:
        broken.append(f"learner.algorithm.correction.low={low} is not below its high={high}")
    if not kl.coef and (unused := _unused_kl(options)):
        broken.append(
            f"learner.algorithm.kl sets {', '.join(unused)}, but kl.coef=0, so there is no "
            "reference policy: set kl.coef above 0, or leave the others out"
        )
    if kl.reference == "adapter" and not has_adapters:
        broken.append(
            "learner.algorithm.kl.reference=adapter is the policy with its LoRA adapters off, and "
            "there are none: set model.lora.rank above 0, or kl.reference=copy"
        )
    if kl.reference == "adapter" and kl.update_every:
        broken.append(
            "learner.algorithm.kl.update_every moves the reference, but kl.reference=adapter is "
            "the model that the adapters began on: set kl.reference=copy, or update_every=0"
        )
    if kl.coef and row.supervised and kl.placement != "loss":
        broken.append(
            f"{name} has no rewards to take a KL penalty from: set "
            "learner.algorithm.kl.placement=loss"
        )
    if kl.coef and row.judged_steps and kl.placement != "loss":
        broken.append(
            f"{name} learns from judged steps alone, which a KL penalty in the reward does not "
            "reach: set learner.algorithm.kl.placement=loss"
        )
    if kl.coef and row.supervised and kl.importance:
        broken.append(
            f"learner.algorithm.kl.importance weighs by the ratio to what sampled, and {name} "
            "trains on what nobody sampled: set kl.importance=false"
        )
    if kl.coef and kl.placement != "loss" and kl.importance:
        broken.append(
            "learner.algorithm.kl.importance weighs the KL term of the loss, but kl.placement="
            f"{kl.placement}: set placement=loss, or leave importance out"
        )
    if options.entropy.floor is not None and options.entropy.limit < options.entropy.coef:
        broken.append(
            f"learner.algorithm.entropy.limit={options.entropy.limit} is below entropy.coef="
            f"{options.entropy.coef}: raise it"
        )
    if not row.critic and config.critic != CriticConfig():
        broken.append(
            f"learner.critic has options, but {name} has no critic: take ppo, or leave them out"
        )
    return broken


def _unused_kl(options: AlgorithmConfig) -> list[str]:
    """KL options that somebody set, a preset aside."""
    preset = PRESETS[options.preset].options(options.name).get("kl", {}) if options.preset else {}
    default, given = KLConfig().model_dump(), options.kl.model_dump(exclude={"coef"})
    return [n for n, v in given.items() if v not in (default[n], preset.get(n, default[n]))]
