"""The learner's weights as a stream of full tensors under their Hugging Face names."""

from collections.abc import Iterator
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from learner.adapter import deltas, plain_name
from rollout.transfer import TensorMeta


class ZeroSource:
    """Weights of a module whose parameters ZeRO may have sharded.

    `metadata()` gathers nothing. Iterating is a collective under ZeRO-3, one decoder layer at a
    time, the next one while whoever iterates has this one (sends it, say): so no rank ever holds
    more than two layers beyond its share. All ranks iterate together. A tied head appears once,
    under the embedding's name, as in the checkpoint.
    """

    def __init__(self, model: Any, *, sharded: bool) -> None:
        self._sharded = sharded
        self._deltas = deltas(model)
        named = [(plain_name(name), p) for name, p in model.named_parameters()]
        self._parameters: list[tuple[str, Tensor]] = [(n, p) for n, p in named if n is not None]

    def metadata(self) -> list[TensorMeta]:
        return [
            TensorMeta(name, p.dtype, tuple(p.ds_shape if self._sharded else p.shape))  # pyright: ignore[reportAttributeAccessIssue]
            for name, p in self._parameters
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        layers = list(self._layers())
        gathers = [self._gather(layers[0])]
        try:
            for number, layer in enumerate(layers):
                gathers[0].wait()
                gathers += [self._gather(after) for after in layers[number + 1 : number + 2]]
                yield from ((name, self._whole(name, p)) for name, p in layer)
                gathers.pop(0).release()
        finally:
            for each in gathers:  # nobody wants the rest
                each.wait()
                each.release()

    def _gather(self, layer: list[tuple[str, Tensor]]) -> "Gather":
        adapters = [p for name, _ in layer if name in self._deltas for p in self._deltas[name][1]]
        return Gather([*(p for _, p in layer), *adapters] if self._sharded else [])

    def _whole(self, name: str, parameter: Tensor) -> Tensor:
        """The weight, with its adapter added in where it has one."""
        weight = parameter.detach()
        if name not in self._deltas:
            return weight
        with torch.no_grad():
            return weight + self._deltas[name][0]().to(weight.dtype)

    def _layers(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Runs of parameters that share a layer number, in order."""
        layer: list[tuple[str, Tensor]] = []
        for name, parameter in self._parameters:
            if layer and _layer_of(name) != _layer_of(layer[0][0]):
                yield layer
                layer = []
            layer.append((name, parameter))
        if layer:
            yield layer

    def copy_from(self, other: "ZeroSource") -> None:
        """Take over the weights of another module of the same shape. A collective when either is
        sharded."""
        pairs = zip(self._parameters, other, strict=True)
        for (name, mine), (theirs, tensor) in pairs:
            if name != theirs:
                raise RuntimeError(f"weights do not line up: {name} here, {theirs} there")
            if not self._sharded:
                mine.data.copy_(tensor)
                continue
            import deepspeed

            with deepspeed.zero.GatheredParameters([mine], modifier_rank=0):
                mine.data.copy_(tensor)

    def digest(self) -> str:
        """Of all weights, names and shapes. A collective under ZeRO-3."""
        found = blake3()
        for name, tensor in self:
            found.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def full_state(self, *, keep: bool) -> dict[str, Tensor]:
        """All tensors on the CPU where `keep`, nothing elsewhere. A collective under ZeRO-3."""
        state: dict[str, Tensor] = {}
        for name, tensor in self:
            if keep:
                state[name] = tensor.to("cpu", copy=True)
        return state


class Gather:
    """Whole parameters, from all ranks, on their way since this was made; those that are whole here
    anyhow are left as they are. The calls of DeepSpeed's own prefetching: its context manager waits
    when it is entered."""

    def __init__(self, parameters: list[Any]) -> None:
        self._parameters = [p for p in parameters if p.ds_status.name == "NOT_AVAILABLE"]
        first = self._parameters[0] if self._parameters else None
        self._on_its_way = (
            first.all_gather_coalesced(self._parameters) if first is not None else None
        )

    def wait(self) -> None:
        if self._on_its_way is not None:
            self._on_its_way.wait()

    def release(self) -> None:
        """Keep this rank's share alone."""
        if self._parameters:
            self._parameters[0].partition(param_list=self._parameters, has_been_updated=False)


def _layer_of(name: str) -> str:
    """ "model.layers.3.mlp.up_proj.weight" -> "model.layers.3"; names without a number -> ""."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ""
