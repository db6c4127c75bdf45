"""The model, the algorithm, the critic and the optimizer."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.presets import PRESETS, merged

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
Row = TypeVar("Row")


def known(table: Mapping[str, Row], name: str, option: str) -> Row:
    """The entry of this name. Raises ValueError with the nearest one."""
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? There are" if close else "there are"
    raise ValueError(f"{option}={name!r} is not known; {hint} {', '.join(table)}")


class LoraConfig(BaseModel):
    model_config = STRICT

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters; 0 trains all weights. Samplers get the weights with the adapters added
    in."""

    alpha: int = Field(default=32, ge=1)
    """An adapter's output is multiplied by alpha / rank."""

    targets: list[str] = []
    """Names of the layers that get one, like q_proj; empty: every linear layer but the head."""


class ModelConfig(BaseModel):
    model_config = STRICT

    path: str = ""
    """Folder of a Hugging Face checkpoint, or a hub id. The reference policy of the KL term is the
    model found here."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations in sampler and learner; `auto` follows the device."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    lora: LoraConfig = LoraConfig()


class KLConfig(BaseModel):
    model_config = STRICT

    coef: float = Field(default=0.0, ge=0)
    """Weight of the estimate of KL(policy || reference). 0 loads no reference."""

    estimator: Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"] = "k3"
    """Of the KL per token; a trailing `+` takes the gradient of k2."""

    placement: Literal["loss", "reward", "reward_at_end"] = "loss"
    """Added to the loss; or taken from the reward, token by token or as one sum on the last."""

    importance: bool = False
    """Multiply the term in the loss by the ratio of policy and anchor."""

    target: float | None = Field(default=None, gt=0)
    """KL per token that the coefficient is steered to, by at most 20 % of `1 / horizon` per
    completion; None keeps it fixed."""

    horizon: int = Field(default=10_000, ge=1)
    """Completions over which the coefficient follows."""

    reference: Literal["copy", "offload", "sharded", "adapter"] = "copy"
    """Where the reference is: a whole copy on each rank's device; a copy in host memory that visits
    the device; shards over the ranks (ZeRO-3 inference); the policy with its LoRA adapters off."""

    update_every: int = Field(default=0, ge=0)
    """Steps between two times that the reference becomes the policy of that moment; 0 is never."""


class EntropyConfig(BaseModel):
    model_config = STRICT

    coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus in the loss."""

    floor: float | None = Field(default=None, gt=0)
    """Entropy per token below which the coefficient rises, by `step` per step; above it falls back,
    down to `coef`."""

    step: float = Field(default=1e-3, gt=0)
    """How much the coefficient moves per step while there is a floor."""

    limit: float = Field(default=0.05, gt=0)
    """Largest coefficient that the floor may lead to."""

    @property
    def is_used(self) -> bool:
        return self.coef > 0 or self.floor is not None


class CorrectionConfig(BaseModel):
    model_config = STRICT

    kind: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric"
    ] = "none"
    """What is done about the learner's logprobs differing from the sampler's under the same
    weights: weigh tokens or completions by the ratio, and truncate or drop what is out of bounds;
    `geometric` drops completions by the geometric mean of their tokens' ratios."""

    low: float | None = Field(default=None, ge=0)
    """Smallest ratio."""

    high: float | None = Field(default=2.0, gt=0)
    """Largest ratio; also the one beyond which a token counts as capped in the metrics."""

    counts_dropped: bool = False
    """Dropped tokens stay in the denominators of the loss."""

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), open ends as 0 and infinity."""
        return self.low or 0.0, self.high or math.inf


class AlgorithmConfig(BaseModel):
    model_config = STRICT

    name: str = "grpo"
    """The row of the table in docs/algorithms.md: grpo, grpo_process, dr_grpo, dapo, gspo,
    gspo_token, cispo, sapo, gmpo, rloo, reinforce++, reinforce++_baseline, remax, ppo, sft."""

    preset: str = ""
    """`trl`, `verl` or `openrlhf`: that peer's conventions wherever nothing else is set."""

    clip_low: float | None = Field(default=None, ge=0)
    """The ratio is clipped at 1 - clip_low; the row's own value by default."""

    clip_high: float | None = Field(default=None, ge=0)
    """The ratio is clipped at 1 + clip_high; the row's own value by default."""

    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage A is negative, the loss of a token is at most -dual_clip x A."""

    cap: Literal["one_plus_eps", "absolute_cap"] | None = None
    """CISPO: the weight is clipped to 1 - clip_low ... 1 + clip_high, or to at most clip_high."""

    level: Literal["token", "sequence", "sequence_token", "product"] | None = None
    """What the ratio is of: a token; a completion (the geometric mean of its tokens' ratios), the
    same with each token's gradient its own; or the product of all its tokens' ratios."""

    tau_positive: float | None = Field(default=None, gt=0)
    """SAPO: steepness of the gate where the advantage is positive."""

    tau_negative: float | None = Field(default=None, gt=0)
    """SAPO: steepness of the gate elsewhere."""

    scale: Literal["group", "batch", "none"] | None = None
    """What centred rewards are divided by: the std of the group, of the table, or nothing."""

    eps: float | None = Field(default=None, gt=0)
    """Added to that std."""

    gamma: float | None = Field(default=None, gt=0, le=1)
    """Discount per token."""

    lam: float | None = Field(default=None, ge=0, le=1)
    """GAE: 0 trusts the critic, 1 the return."""

    reduction: Literal["sequence_mean", "token_mean", "sequence_sum", "constant_length"] | None = (
        None
    )
    """How token losses become one number; the row's own by default."""

    anchor: Literal["behaviour", "recomputed"] = "behaviour"
    """What the ratio is taken against: the logprobs that the sampler recorded, or the learner's own
    of the same tokens before the table's first update (one more forward pass)."""

    epochs: int = Field(default=1, ge=1)
    """How often each table is trained on."""

    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per epoch; each takes its share of the groups."""

    mask_truncated: bool = False
    """Completions cut at the length limit count in their group's baseline and train nothing."""

    kl: KLConfig = KLConfig()
    entropy: EntropyConfig = EntropyConfig()
    correction: CorrectionConfig = CorrectionConfig()

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("preset"):
            return given
        preset = known(PRESETS, given["preset"], "learner.algorithm.preset")
        return merged(preset.options(given.get("name", "grpo")), given)


class CriticConfig(BaseModel):
    model_config = STRICT

    path: str = ""
    """What the value model starts from: a folder or hub id of a language model, or of a reward
    model with one output, whose head it keeps. Empty: the policy's own start, with a head of
    zeros."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate; all else is as in `learner.optim`."""

    clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from what it was before the table; None does not clip."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which only the critic learns."""


class OptimConfig(BaseModel):
    model_config = STRICT

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's running means of the gradient and of its square."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""

    final_lr_fraction: float = Field(default=1.0, ge=0, le=1)
    """What is left of the learning rate at the last step, approached along a cosine; 1 keeps it
    constant."""

    clip_norm: float = Field(default=1.0, ge=0)
    """Largest global norm of the gradient; 0 does not clip."""


class ZeroConfig(BaseModel):
    model_config = STRICT

    stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the ranks: nothing, optimizer state, gradients too, weights too.
    """


class LearnerConfig(BaseModel):
    model_config = STRICT

    ranks: int = Field(default=1, ge=1)
    """Learner processes, one device each."""

    algorithm: AlgorithmConfig = AlgorithmConfig()
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    critic: CriticConfig = CriticConfig()

    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward pass on one rank. A single row may exceed it."""

    packing: bool = True
    """Sequences of different lengths share rows of a micro-batch, and micro-batches are balanced by
    FLOPs over the ranks. Done for the model types that were shown to keep sequences apart
    (`learner/packing.py`); others are padded whatever this says."""

    logits_chunk: int = Field(default=1 << 24, ge=1)
    """Logits (tokens x vocabulary) that exist at once. Below one chunk nothing is recomputed."""

    max_skipped_steps: int = Field(default=3, ge=0)
    """Optimizer steps in a row that may be skipped because their loss or gradient is not finite;
    with one more the run ends."""

    record_logprobs: bool = False
    """Keep what the policy gave each token just before it was trained on it, under `logprobs/` in
    the run folder: then `view` shows the ratio to the sampler's. Under `anchor=recomputed` it is
    known anyway; otherwise it is one more forward pass over each table. Fine-tuning has no sampler
    to compare with, and records none."""

    deepspeed: dict[str, Any] = {}
    """Merged into the DeepSpeed config, last."""
