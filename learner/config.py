"""The model, the algorithm and the optimizer."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(BaseModel):
    model_config = STRICT

    path: str = ""
    """Folder of a Hugging Face checkpoint, or a hub id. The reference policy of the KL term is the
    model found here."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations in sampler and learner; `auto` follows the device."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class KLConfig(BaseModel):
    model_config = STRICT

    coef: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || reference) in the loss. 0 loads no reference."""


class AlgorithmConfig(BaseModel):
    model_config = STRICT

    name: Literal["grpo", "sft"] = "grpo"
    """The row of the table in docs/algorithms.md."""

    clip_low: float | None = Field(default=None, ge=0)
    """The ratio is clipped at 1 - clip_low; the row's own value by default."""

    clip_high: float | None = Field(default=None, ge=0)
    """The ratio is clipped at 1 + clip_high; the row's own value by default."""

    reduction: Literal["sequence_mean", "token_mean"] | None = None
    """How token losses become one number; the row's own by default."""

    kl: KLConfig = KLConfig()


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

    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward pass on one rank, padding included. A single row may exceed it."""

    logits_chunk: int = Field(default=1 << 24, ge=1)
    """Logits (tokens x vocabulary) that exist at once. Below one chunk nothing is recomputed."""

    deepspeed: dict[str, Any] = {}
    """Merged into the DeepSpeed config, last."""
