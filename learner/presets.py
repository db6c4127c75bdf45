"""Options under which our numbers are a peer's: defaults of `learner.algorithm` that a preset
changes. What the user sets himself wins. docs/algorithms.md says where peers differ.

Each is checked against values that the peer's own code computed (`python -m learner.golden`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    every: Mapping[str, Any]
    """Options for all rows; those that a row has no use for are passed over."""
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options for single rows besides."""

    def options(self, row: str) -> dict[str, Any]:
        return merged(self.every, self.rows.get(row, {}))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = merged(base[key], value) if both else value
    return result


NO_KL = {"kl": {"coef": 0.0, "estimator": "k3", "placement": "loss"}}

PRESETS = {
    "trl": Preset(
        every={
            "eps": 1e-4,
            "anchor": "recomputed",
            "correction": {"kind": "sequence_mask", "high": 3.0, "counts_dropped": True},
            "kl": {"importance": True},
            "cap": "absolute_cap",
        },
        rows={
            "grpo": {"reduction": "token_mean"},
            "rloo": {
                "clip_low": 0.2,
                "clip_high": 0.2,
                "kl": {
                    "coef": 0.05,
                    "estimator": "k1",
                    "placement": "reward",
                    "importance": False,
                },
            },
            "cispo": {"clip_high": 5.0},
        },
    ),
    "verl": Preset(
        every={"eps": 1e-6, "dual_clip": 3.0, "anchor": "recomputed"},
        rows={
            "grpo": {"reduction": "token_mean"},
            "rloo": {
                "reduction": "token_mean",
                "level": "token",
                "clip_low": 0.2,
                "clip_high": 0.2,
            },
            "gspo": {"level": "sequence_token"},
            "cispo": {"clip_low": 0.2, "clip_high": 0.2},
        },
    ),
    "openrlhf": Preset(
        every={
            "eps": 1e-9,
            "anchor": "recomputed",
            "kl": {"coef": 0.01, "estimator": "k1", "placement": "reward"},
        },
        rows={
            "grpo": {"reduction": "token_mean"},
            "dr_grpo": {"reduction": "token_mean"},
            "grpo_process": NO_KL,
            "sft": NO_KL,
            "rloo": {
                "reduction": "token_mean",
                "level": "token",
                "clip_low": 0.2,
                "clip_high": 0.2,
            },
        },
    ),
}
