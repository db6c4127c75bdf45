"""The learner's weights as a stream of full tensors under their Hugging Face names."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from learner.adapter import deltas, halves, plain_name
from rollout.transfer import TensorMeta, adapter_name

Named = list[tuple[str, Tensor]]


class ZeroSource:
    """Weights of a module whose parameters ZeRO may have sharded, with adapters added in.

    `metadata()` gathers nothing. Iterating is a collective under ZeRO-3 (`whole`); all ranks
    iterate together. A tied head appears once, under the embedding's name, as in the checkpoint.
    """

    def __init__(self, model: Any, *, sharded: bool) -> None:
        self.frozen = 0
        self.scales: dict[str, float] = {}
        self._sharded = sharded
        self._deltas = deltas(model)
        self._parameters = plain_parameters(model)

    def metadata(self) -> list[TensorMeta]:
        return describe(self._parameters, sharded=self._sharded)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return whole(self._parameters, self._merged, beside=self._adapters, sharded=self._sharded)

    def changing(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self)

    def _adapters(self, name: str) -> list[Tensor]:
        return self._deltas[name][1] if name in self._deltas else []

    def _merged(self, name: str, parameter: Tensor) -> Tensor:
        """The weight, with its adapter added in where it has one."""
        weight = parameter.detach()
        if name not in self._deltas:
            return weight
        with torch.no_grad():
            return weight + self._deltas[name][0]().to(weight.dtype)

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


class AdapterSource:
    """A frozen model's weights as they were, and behind them its adapters, which alone change:
    whoever receives them adds them in. A collective, as `ZeroSource`."""

    def __init__(self, model: Any, *, sharded: bool) -> None:
        self._sharded = sharded
        self._weights = plain_parameters(model)
        self.frozen = len(self._weights)
        found = halves(model)
        self.scales = {name: scale for name, (*_, scale) in found.items()}
        self._adapters: Named = []
        for name, (a, b, _) in found.items():
            self._adapters += [(adapter_name(name, "A"), a), (adapter_name(name, "B"), b)]

    def metadata(self) -> list[TensorMeta]:
        return describe([*self._weights, *self._adapters], sharded=self._sharded)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from whole(self._weights, as_it_is, sharded=self._sharded)
        yield from self.changing()

    def changing(self) -> Iterator[tuple[str, Tensor]]:
        return whole(self._adapters, as_it_is, sharded=self._sharded)


def as_it_is(_: str, parameter: Tensor) -> Tensor:
    return parameter.detach()


def plain_parameters(model: Any) -> Named:
    """Without adapters, under the names of the checkpoint."""
    named = [(plain_name(name), p) for name, p in model.named_parameters()]
    return [(name, p) for name, p in named if name is not None]


def describe(parameters: Named, *, sharded: bool) -> list[TensorMeta]:
    return [
        TensorMeta(name, p.dtype, tuple(p.ds_shape if sharded else p.shape))  # pyright: ignore[reportAttributeAccessIssue]
        for name, p in parameters
    ]


def whole(
    parameters: Named,
    value: Callable[[str, Tensor], Tensor],
    *,
    beside: Callable[[str], list[Tensor]] = lambda _: [],
    sharded: bool,
) -> Iterator[tuple[str, Tensor]]:
    """The value of each parameter, which is whole meanwhile, as is what `value` needs `beside` it.

    A collective where they are sharded, one decoder layer at a time, the next one while whoever
    iterates has this one (sends it, say): so no rank ever holds more than two layers beyond its
    share.
    """

    def gather(layer: Named) -> Gather:
        more = [p for name, _ in layer for p in beside(name)]
        return Gather([*(p for _, p in layer), *more] if sharded else [])

    layers = [list(run) for _, run in itertools.groupby(parameters, lambda p: _layer_of(p[0]))]
    gathers = [gather(layers[0])]
    try:
        for number, layer in enumerate(layers):
            gathers[0].wait()
            gathers += [gather(after) for after in layers[number + 1 : number + 2]]
            yield from ((name, value(name, p)) for name, p in layer)
            gathers.pop(0).release()
    finally:
        for each in gathers:  # nobody wants the rest
            each.wait()
            each.release()


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
