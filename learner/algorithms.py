"""The table: an algorithm is an advantage, a surrogate, a reduction and their settings.

Adding one is adding a row and its tests; nothing else in the project asks for an algorithm's name.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from learner import advantages, objectives
from learner.config import AlgorithmConfig, known
from learner.presets import PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    advantage: Callable[..., Any]
    """`learner/advantages.py`: Evidence of the whole table to [N] or [N, T]."""
    surrogate: Callable[..., Any]
    """`learner/objectives.py`: (logp_BT, anchor_BT, advantage_BT, mask_BT) to (loss_BT,
    clipped_BT)."""
    reduction: Callable[..., Any]
    """(mask_BT, Counts) to weight_BT. The counts are those of the whole step over all ranks, so the
    weighted sums of micro-batches and ranks add up to the mean."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the three, each handed to whoever takes it."""
    supervised: bool = False
    """It learns from demonstrations; nothing is sampled for training."""
    siblings: int = 1
    """Completions of one prompt that its advantage needs at least."""
    critic: bool = False
    """It trains a value model beside the policy."""
    greedy: bool = False
    """Each prompt is answered greedily as well: the baseline."""
    judged_steps: bool = False
    """It learns from verifiers' verdicts on the steps of a completion."""

    @property
    def compares_siblings(self) -> bool:
        """A group whose rewards are all the same teaches it nothing."""
        return self.siblings > 1 and not self.judged_steps

    def accepts(self, name: str) -> bool:
        """Whether one of its parts has a setting of this name."""
        return any(name in _parameters(p) for p in (self.advantage, self.surrogate, self.reduction))


PPO_CLIP = {"clip_low": 0.2, "clip_high": 0.2}

ALGORITHMS = {
    "grpo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        settings=PPO_CLIP,
        siblings=2,
    ),
    "grpo_process": Algorithm(
        advantage=advantages.process,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        settings=PPO_CLIP,
        siblings=2,
        judged_steps=True,
    ),
    "dr_grpo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.clipped,
        reduction=objectives.constant_length,
        settings={**PPO_CLIP, "scale": "none"},
        siblings=2,
    ),
    "dapo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.clipped,
        reduction=objectives.token_mean,
        settings={"clip_low": 0.2, "clip_high": 0.28},
        siblings=2,
    ),
    "gspo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        settings={"clip_low": 3e-4, "clip_high": 4e-4, "level": "sequence"},
        siblings=2,
    ),
    "gspo_token": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        settings={"clip_low": 3e-4, "clip_high": 4e-4, "level": "sequence_token"},
        siblings=2,
    ),
    "cispo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.detached,
        reduction=objectives.token_mean,
        settings={"clip_low": 1.0, "clip_high": 4.0, "cap": "one_plus_eps"},
        siblings=2,
    ),
    "sapo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.sigmoid_gated,
        reduction=objectives.sequence_mean,
        settings={"tau_positive": 1.0, "tau_negative": 1.05},
        siblings=2,
    ),
    "gmpo": Algorithm(
        advantage=advantages.group_relative,
        surrogate=objectives.geometric_mean,
        reduction=objectives.sequence_mean,
        settings={"clip_low": 0.4, "clip_high": 0.4},
        siblings=2,
    ),
    "rloo": Algorithm(
        advantage=advantages.leave_one_out,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        settings={"level": "product"},
        siblings=2,
    ),
    "reinforce++": Algorithm(
        advantage=advantages.whitened_returns,
        surrogate=objectives.clipped,
        reduction=objectives.token_mean,
        settings={**PPO_CLIP, "gamma": 1.0},
    ),
    "reinforce++_baseline": Algorithm(
        advantage=advantages.whitened_group_baseline,
        surrogate=objectives.clipped,
        reduction=objectives.token_mean,
        settings=PPO_CLIP,
        siblings=2,
    ),
    "remax": Algorithm(
        advantage=advantages.minus_greedy,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_sum,
        greedy=True,
    ),
    "ppo": Algorithm(
        advantage=advantages.whitened_gae,
        surrogate=objectives.clipped,
        reduction=objectives.token_mean,
        settings={**PPO_CLIP, "gamma": 1.0, "lam": 0.95},
        critic=True,
    ),
    "sft": Algorithm(
        advantage=advantages.constant,
        surrogate=objectives.likelihood,
        reduction=objectives.token_mean,
        supervised=True,
    ),
}

REDUCTIONS = {
    "sequence_mean": objectives.sequence_mean,
    "token_mean": objectives.token_mean,
    "sequence_sum": objectives.sequence_sum,
    "constant_length": objectives.constant_length,
}

SETTINGS = (
    *("clip_low", "clip_high", "dual_clip", "cap", "level", "tau_positive", "tau_negative"),
    *("scale", "eps", "gamma", "lam"),
)
"""Options of AlgorithmConfig that go to the parts of a row, by the same name."""


def build(config: AlgorithmConfig) -> Algorithm:
    """The row that a config names, its preset and its options laid over it, its settings bound.

    Raises ValueError for an unknown row, and for an option that the row has no use for.
    """
    row = known(ALGORITHMS, config.name, "learner.algorithm.name")
    settings = dict(row.settings)
    preset = PRESETS[config.preset].every if config.preset else {}
    for name, value in config.model_dump(include=set(SETTINGS), exclude_none=True).items():
        if row.accepts(name):
            settings[name] = value
        elif preset.get(name) != value:  # a preset speaks of all rows, the user of this one
            takes = ", ".join(s for s in SETTINGS if row.accepts(s))
            raise ValueError(
                f"learner.algorithm.{name}={value}: {config.name} has no use for it; "
                f"it takes {takes or 'none of these options'}"
            )

    def bound(part: Callable[..., Any]) -> Callable[..., Any]:
        taken = {name: settings[name] for name in _parameters(part) if name in settings}
        return functools.partial(part, **taken) if taken else part

    return replace(
        row,
        advantage=bound(row.advantage),
        surrogate=bound(row.surrogate),
        reduction=bound(REDUCTIONS[config.reduction] if config.reduction else row.reduction),
        settings=settings,
    )


def _parameters(part: Callable[..., Any]) -> list[str]:
    """Names of its keyword arguments."""
    every = inspect.signature(part).parameters.values()
    return [p.name for p in every if p.kind is p.KEYWORD_ONLY]
