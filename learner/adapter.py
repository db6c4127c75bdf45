"""LoRA through peft: low-rank adapters on the linear layers of a frozen model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LoraConfig


def attach(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters on the model, in place; from here on only they are trained. Their start is the
    same on every rank and in every run.

    Raises ValueError when no layer has a name that `targets` lists.
    """
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=config.targets or "all-linear",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft.inject_adapter_in_model(settings, model)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """While the model is what it was before training."""
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        # Not `enable_adapters(False)`: it takes the gradients' hooks from the weights as well.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def deltas(model: nn.Module) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """By the name that a weight has without adapters: what its adapter adds to it, and the
    parameters that this is computed from."""
    return {
        f"{name}.weight": (
            lambda layer=layer: layer.get_delta_weight("default"),
            [p for key, p in layer.named_parameters() if "lora_" in key],
        )
        for name, layer in _layers(model)
    }


def halves(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """By the name that a weight [out, in] has without adapters: A [r, in], B [out, r] and the
    factor f, where its adapter adds f B A. Empty where any adapter is of another shape."""
    found = {}
    for name, layer in _layers(model):
        if "default" not in layer.lora_A or layer.fan_in_fan_out:
            return {}
        a, b = (half["default"].weight for half in (layer.lora_A, layer.lora_B))
        found[f"{name}.weight"] = a, b, float(layer.scaling["default"])
    return found


def plain_name(name: str) -> str | None:
    """The name of a parameter without adapters; None for an adapter's own."""
    return None if ".lora_" in name else name.replace(".base_layer.", ".")
