"""Rewards to advantages. Formulas and sources: docs/algorithms.md."""

import numpy as np


def group_norm(rewards_N: np.ndarray, groups_N: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """GRPO: (r - mean) / (std + eps) within each group, std with ddof 1 (arXiv 2402.03300,
    section 4.1.2).

    `rewards_N` is float64 with NaN where the completion could not be scored: such a row plays no
    part in mean and std and gets 0, and so do all rows of a group with fewer than two scored rows
    or with equal rewards.

    >>> group_norm(np.array([0.0, 1.0, 0.1, 0.1]), np.array([7, 7, 8, 8])).round(4)
    array([-0.7071,  0.7071,  0.    ,  0.    ])
    """
    advantages_N = np.zeros(len(rewards_N), dtype=np.float64)
    for group in np.unique(groups_N):
        rows = (groups_N == group) & ~np.isnan(rewards_N)
        rewards = rewards_N[rows]
        # max == min, not std == 0: the std of equal 0.1s is 1e-17, and would be divided by eps.
        if len(rewards) < 2 or rewards.max() == rewards.min():
            continue
        advantages_N[rows] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + eps)
    return advantages_N


def constant(rewards_N: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """1 on every row: supervised fine-tuning wants all of its demonstrations alike."""
    return np.ones(len(rewards_N), dtype=np.float64)
