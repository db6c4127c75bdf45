"""Inputs of an entry, and what the translations share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.advantages import Evidence

Result = dict[str, Any]
"""Options of an entry, or the numbers computed for it."""


class Case:
    """Inputs of one case as float64 tensors, with an entry's own inputs over them. What the loss is
    differentiated by requires a gradient."""

    def __init__(self, values: dict[str, Any], inputs: dict[str, Any]) -> None:
        self._values = {**values, **inputs}
        self.mask = self["mask"]
        self.rows, self.width = self.mask.shape

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        if isinstance(value, str) and value.startswith("case."):
            return self[value.removeprefix("case.")]
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float64)
        self._values[name] = value
        return value

    def raw(self, name: str) -> Any:
        return self._values[name]

    def leaf(self, name: str) -> Tensor:
        self._values[name] = self[name].detach().clone().requires_grad_(True)
        return self._values[name]

    def spread(self, name: str) -> Tensor:
        """A number per row on all of its tokens."""
        value = self[name]
        return value if value.dim() == 2 else value[:, None].expand(self.rows, self.width)

    def evidence(self, hyper: Result, **given: Any) -> Evidence:
        groups = hyper.get("group_index") or self["group_index"].long().tolist()
        fields: dict[str, Any] = {
            "rewards_N": np.zeros(self.rows),
            "groups_N": np.array(groups),
            "mask_NT": self.mask.numpy() > 0,
        }
        return Evidence(**{**fields, **given})


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def share(what: Tensor, mask: Tensor) -> float:
    """Mean over the masked-in tokens."""
    return float((what.detach() * mask).sum() / mask.sum())
