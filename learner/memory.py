"""How much memory a learner needs, by formula: bytes on each rank.

Checked against what was measured in docs/study/. N parameters; a weight takes `width` bytes: 2 in
bfloat16, 4 in float32.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the formula needs to know of a decoder."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv: int
    """Width of keys, and of values"""
    vocabulary: int

    @classmethod
    def of(cls, config: Any, *, parameters: int) -> "Architecture":
        """Of a Hugging Face config."""
        text = config.get_text_config()
        return cls(
            parameters=parameters,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            kv=kv_width(text),
            vocabulary=text.vocab_size,
        )


def kv_width(text: Any) -> int:
    """Width of keys, and of values, of a Hugging Face text config."""
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return size * (getattr(text, "num_key_value_heads", None) or heads)


def states(parameters: int, *, ranks: int, stage: int, width: int) -> dict[str, float]:
    """Weights, gradients and optimizer state of a model that is trained (arXiv 1910.02054, figure
    1): AdamW's two running means in float32 and, where ZeRO shards them or the weights are
    narrower, a float32 copy of the weights. Stage 1 shards the optimizer over the ranks, stage 2
    the gradients too, stage 3 the weights too."""
    copy = 4 if stage or width < 4 else 0
    return {
        "weights": width * parameters / (ranks if stage == 3 else 1),
        "gradients": width * parameters / (ranks if stage >= 2 else 1),
        "optimizer": (8 + copy) * parameters / (ranks if stage >= 1 else 1),
    }


def frozen(parameters: int, *, ranks: int, sharded: bool, width: int) -> float:
    """A model that is only asked: the reference."""
    return width * parameters / (ranks if sharded else 1)


def activations(
    model: Architecture, tokens: int, *, width: int, checkpointing: bool, logits: int
) -> float:
    """What one forward pass over `tokens` keeps for its backward: per layer and token about ten
    vectors of the hidden width, keys and values, and four of the intermediate width; with
    checkpointing one hidden vector, and one layer in full. Logits (`logits` at a time) are kept
    twice in float32. Policy and critic run one after the other: the larger counts, not the sum.
    """
    layer = tokens * (10 * model.hidden + 2 * model.kv + 4 * model.intermediate) * width
    if checkpointing:
        body = model.layers * tokens * model.hidden * width + layer
    else:
        body = model.layers * layer
    return body + 8 * min(tokens * model.vocabulary, logits)
