"""The value model of PPO: a language model's body with one number in place of logits."""

from typing import Any

import torch
from torch import Tensor, nn

from learner.model import load_model, quiet, without_dropout


class Critic(nn.Module):
    """Values of the states before each trained token. H hidden."""

    def __init__(self, body: Any, head_H1: Tensor) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Parameter(head_H1)

    def forward(
        self,
        tokens_BT: Tensor,
        trains_BT: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """value_BT in float32 where `trains_BT`, 0 elsewhere. Index t is the state in which the
        token at t + 1 is chosen."""
        hidden_BTH = self.body(
            input_ids=tokens_BT,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
        )[0]
        value_BT = (hidden_BTH.float() @ self.head.float()).squeeze(-1)
        return value_BT * trains_BT.to(torch.float32)


def load_critic(path: str, *, dtype: torch.dtype, gradient_checkpointing: bool) -> Critic:
    """From a language model, with a head of zeros; or from a reward model, with its own.

    Raises ValueError for a reward model with more than one output, and for what `load_model` does.
    """
    import transformers

    quiet()
    config = transformers.AutoConfig.from_pretrained(path)
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        model = load_model(path, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
        body = model.get_decoder()
        width = model.config.get_text_config().hidden_size
        return Critic(body, torch.zeros(width, 1, dtype=dtype))
    if config.num_labels != 1:
        raise ValueError(
            f"learner.critic.path={path!r} is a classifier with {config.num_labels} outputs; a "
            "reward model has one"
        )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
    body = model.get_decoder()
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        without_dropout(model)
    return Critic(body, model.score.weight.detach().T.clone())
