"""A Hugging Face model as a policy: tokens to logprobs, without ever holding all logits."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

UNSUPPORTED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config entries of models that change logits behind lm_head, which `Policy` calls by itself."""


class Policy(nn.Module):
    """The model and the head that turns hidden states into logprobs, chunk by chunk.

    N trained positions, H hidden, V vocabulary.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        logits_chunk: int,
        differentiable_entropy: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.logits_chunk = logits_chunk
        self.differentiable_entropy = differentiable_entropy

    def forward(
        self,
        tokens_BT: Tensor,
        trains_BT: Tensor,
        targets_BT: Tensor,
        *,
        positions: int,
        temperature: float | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(logp_BT, entropy_BT) in float32 where `trains_BT`, 0 elsewhere. The entropy carries
        a gradient only where it was asked for: it costs as much memory as the logits.

        `positions` is the largest number of trained positions on any rank: it fixes the number of
        chunks, because under ZeRO-3 each call of the head is a collective. `position_ids` tell
        sequences apart that share a row, an `attention_mask` [B, 1, T, T] those that share a
        prompt.
        """
        decoder = self.model.get_decoder()
        hidden_BTH = decoder(
            input_ids=tokens_BT,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
        )[0]
        wanted_BT = trains_BT.clone()
        if not bool(wanted_BT.any()):
            wanted_BT[0, 0] = True  # a rank with nothing to say still runs the head
        hidden_NH, targets_N = hidden_BTH[wanted_BT], targets_BT[wanted_BT]
        vocabulary = self.model.config.vocab_size
        chunks = max(1, -(-positions * vocabulary // self.logits_chunk))
        heat = self.temperature if temperature is None else temperature
        parts = []
        for hidden, targets in zip(
            hidden_NH.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True
        ):
            if chunks > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(self._logprob, hidden, targets, heat, use_reentrant=False))
            else:
                parts.append(self._logprob(hidden, targets, heat))
        logp_N, entropy_N = (torch.cat(values) for values in zip(*parts, strict=True))
        keep_BT = trains_BT.to(torch.float32)
        logp_BT = torch.zeros_like(keep_BT).masked_scatter(wanted_BT, logp_N) * keep_BT
        entropy_BT = torch.zeros_like(keep_BT).masked_scatter(wanted_BT, entropy_N) * keep_BT
        return logp_BT, entropy_BT

    def _logprob(self, hidden_NH: Tensor, targets_N: Tensor, heat: float) -> tuple[Tensor, Tensor]:
        logits_NV = self.model.get_output_embeddings()(hidden_NH).float() / heat
        every_NV = F.log_softmax(logits_NV, dim=-1)
        logp_N = every_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
        with torch.set_grad_enabled(self.differentiable_entropy and torch.is_grad_enabled()):
            entropy_N = -(every_NV.exp() * every_NV).sum(dim=-1)
        return logp_N, entropy_N


def quiet() -> None:
    """No progress bars of transformers."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def load_model(path: str, *, dtype: torch.dtype | str, gradient_checkpointing: bool = False) -> Any:
    """A causal language model in the given dtype, without dropout.

    Raises ValueError when the model changes its logits behind the head.
    """
    import transformers

    quiet()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    for name in UNSUPPORTED:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"model {path!r} sets {name}={getattr(model.config, name)}, which is not supported"
            )
    model.eval()  # dropout off, in training too: the sampler has none
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        without_dropout(model)
    return model


def without_dropout(model: nn.Module) -> None:
    """Every dropout rate to 0, as module or as the plain number that attention layers keep."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def export(state: dict[str, Tensor], source: str, folder: Path, *, shard_size: str = "5GB") -> None:
    """A Hugging Face checkpoint: sharded safetensors, config, generation config, tokenizer and its
    chat template. `source` is the folder that all but the weights comes from."""
    import transformers

    quiet()
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=next(iter(state.values())).dtype
        )
    try:
        model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    except OSError:  # an older checkpoint without one; what its config says is all there is
        model.generation_config = transformers.GenerationConfig.from_model_config(config)
    model.save_pretrained(folder, state_dict=state, max_shard_size=shard_size)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
