"""The table: an algorithm is an advantage, a surrogate, a reduction and a clip.

Adding one is adding a row and its tests; nothing else in the project asks for an algorithm's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from learner import advantages, objectives
from learner.config import AlgorithmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    advantage: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(rewards_N, groups_N) -> advantages_N"""
    surrogate: Callable[[Tensor, Tensor, Tensor, tuple[float, float]], tuple[Tensor, Tensor]]
    """(logp_BT, anchor_BT, advantage_B1, clip) -> (loss_BT, clipped_BT)"""
    reduction: Callable[[Tensor, int, int], Tensor]
    """(trains_BT, tokens, sequences) -> weight_BT. The counts are those of the whole step over all
    ranks, so the weighted sums of micro-batches and ranks add up to the mean."""
    clip: tuple[float, float] = (0.0, 0.0)
    supervised: bool = False
    """It learns from demonstrations; nothing is sampled for training."""
    compares_siblings: bool = False
    """The advantage of a completion depends on the others of its group."""


ALGORITHMS = {
    "grpo": Algorithm(
        advantage=advantages.group_norm,
        surrogate=objectives.clipped,
        reduction=objectives.sequence_mean,
        clip=(0.2, 0.2),
        compares_siblings=True,
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
}


def build(config: AlgorithmConfig) -> Algorithm:
    """The row that a config names, with what it overrides."""
    row = ALGORITHMS[config.name]
    low, high = row.clip
    return replace(
        row,
        clip=(
            low if config.clip_low is None else config.clip_low,
            high if config.clip_high is None else config.clip_high,
        ),
        reduction=REDUCTIONS[config.reduction] if config.reduction else row.reduction,
    )
