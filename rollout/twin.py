"""A second set of a CPU engine's weights, loaded and packed while the first one serves."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import (
    restore_layer_refs,
    sanitize_layer_refs,
)


def pack_tied_head(model: Any) -> None:
    """The CPU linear kernels hold packed copies. Reloading refreshes those of every layer but a
    tied lm_head, whose weight is loaded under the embedding's name: without this its logits
    silently stay those of the old weights."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class Twin:
    """Modules like the model's, each with parameters and packed copies of its own.

    It cannot compute: attention, with its cache, is left out. What it can is be loaded by vLLM's
    own reloading, tensor by tensor, and change places with the model, which takes microseconds.
    Costs the memory of the weights once more.
    """

    def __init__(self, model: Any) -> None:
        self._pairs: list[tuple[Any, Any]] = []
        """(module that serves, its twin)"""
        self._twin: Any = self._copy(model, {})

    @staticmethod
    def fits(model: Any, config: Any) -> bool:
        """Whether all that follows from the weights is in the modules that are copied. Quantized
        layers, attention that is more than plain, and buffers that are views of weights keep some
        of it elsewhere."""
        if config.device_config.device_type != "cpu" or config.quant_config is not None:
            return False
        for module in model.modules():
            if is_deferred_attention_layer(module) and (
                type(module) is not Attention or getattr(module.impl, "sinks", None) is not None
            ):
                return False
            weights = {p.untyped_storage().data_ptr() for p in module.parameters()} - {0}
            if any(b.untyped_storage().data_ptr() in weights for b in module.buffers()):
                return False
        return True

    def _copy(self, module: Any, seen: dict[int, Any]) -> Any:
        """`seen`: modules and tensors copied so far, by identity. What is shared stays shared, as
        the weight of a tied head."""
        if module is None or id(module) in seen:
            return seen.get(id(module))
        if is_deferred_attention_layer(module):
            return seen.setdefault(id(module), torch.nn.Module())
        twin = seen[id(module)] = module.__class__.__new__(module.__class__)
        self._pairs.append((module, twin))
        twin.__dict__ = dict(module.__dict__)
        for kind in ("_parameters", "_buffers"):
            named = getattr(module, kind).items()
            twin.__dict__[kind] = {n: _own(t, module, twin, seen) for n, t in named}
        children = module._modules.items()
        twin.__dict__["_modules"] = {n: self._copy(m, seen) for n, m in children}
        info = get_layerwise_info(module)
        mine = get_layerwise_info(twin)
        mine.restore_device = info.restore_device
        parameters, buffers = (
            {n: sanitize_layer_refs(to_meta_tensor(t), module) for n, t in kind.items()}
            for kind in info.restore_metadata
        )
        mine.restore_metadata = (parameters, buffers)
        return twin

    def begin(self) -> None:
        initialize_layerwise_reload(self._twin)

    def load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Tensors under their Hugging Face names; a layer is packed with the last of its own."""
        self._twin.load_weights(named)

    def finish(self, model_config: Any) -> None:
        finalize_layerwise_reload(self._twin, model_config)
        pack_tied_head(self._twin)

    def swap(self) -> None:
        """Serve what was loaded; what served is loaded next. Between two steps of the engine."""
        for module, twin in self._pairs:
            children = module._modules, twin._modules
            module.__dict__, twin.__dict__ = twin.__dict__, module.__dict__
            module.__dict__["_modules"], twin.__dict__["_modules"] = children


def _own(tensor: Tensor | None, module: Any, twin: Any, seen: dict[int, Any]) -> Tensor | None:
    if tensor is None or id(tensor) in seen:
        return seen.get(id(tensor))
    own = tensor.data.clone()
    own.__class__ = tensor.__class__
    vars(own).update(vars(tensor))
    return seen.setdefault(id(tensor), restore_layer_refs(sanitize_layer_refs(own, module), twin))
