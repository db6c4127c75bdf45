"""From facts to training targets: what each token of the table is worth.

Group baselines need every sibling and whitening every token, so each rank computes this for the
whole table, in float64, from columns that all ranks have: no collective, no arithmetic of the
driver's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from learner import advantages, objectives
from learner.advantages import Evidence
from learner.algorithms import Algorithm
from learner.batch import Rows, Targets
from learner.config import AlgorithmConfig, CorrectionConfig, KLConfig
from learner.tally import importance


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What models said of the table before its first update, [N, T] float32 each; None where
    nobody was asked."""

    anchor: np.ndarray | None = None
    reference: np.ndarray | None = None
    value: np.ndarray | None = None
    noted: np.ndarray | None = None
    """What the policy said, where it is no anchor but asked for all the same"""

    @property
    def policy(self) -> np.ndarray | None:
        """Logprobs under the policy in training."""
        return self.anchor if self.anchor is not None else self.noted


def joined(parts: Sequence[Looked], *, width: int) -> Looked:
    """Parts of a table as one; `width` is that of its longest completion."""

    def stacked(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays])

    return Looked(**{field.name: stacked(field.name) for field in fields(Looked)})


def assign(
    rows: Rows,
    looked: Looked,
    *,
    algorithm: Algorithm,
    config: AlgorithmConfig,
    kl_coef: float,
) -> tuple[Targets, dict[str, float]]:
    """Targets of every token, and figures about them."""
    anchor_NT = rows.behaviour_NT if looked.anchor is None else looked.anchor
    metrics = {"learner/rows_left_out": float(rows.left_out)}
    penalty_NT = None
    if looked.reference is not None and config.kl.placement != "loss":
        penalty_NT, mean = _penalty(anchor_NT, looked.reference, rows.mask_NT, config.kl)
        metrics["policy/kl_reference"] = mean
    evidence = Evidence(
        rewards_N=rows.rewards_N,
        groups_N=rows.groups_N,
        mask_NT=rows.mask_NT,
        extra_NT=None if penalty_NT is None else -kl_coef * penalty_NT,
        values_NT=None if looked.value is None else looked.value.astype(np.float64),
        steps_NT=rows.steps_NT,
        greedy_N=rows.greedy_N,
        rounds_N=rows.rounds_N,
    )
    advantage = algorithm.advantage(evidence)
    advantage_NT = (advantage if advantage.ndim == 2 else advantage[:, None]) * rows.trains_NT
    weight_NT, counts_NT = None, rows.trains_NT
    metrics["learner/dropped_tokens"] = 0.0
    if looked.anchor is not None:
        weight_NT, keep_NT, ratio_NT = _correction(looked.anchor, rows, config)
        weight_NT = weight_NT * keep_NT
        metrics["learner/dropped_tokens"] = float((rows.trains_NT & ~keep_NT).sum())
        metrics |= off_policy(ratio_NT[rows.trains_NT], config.correction)
        if not config.correction.counts_dropped:
            counts_NT = rows.trains_NT & keep_NT
    value_NT, returns_NT = None, None
    if looked.value is not None:
        given = {name: algorithm.settings[name] for name in ("gamma", "lam")}
        value_NT = looked.value
        returns_NT = (advantages.gae(evidence, **given) + value_NT) * rows.mask_NT
        metrics["critic/explained_variance"] = explained_variance(
            value_NT[rows.mask_NT], returns_NT[rows.mask_NT]
        )
    targets = Targets(
        trains=counts_NT,
        behaviour=rows.behaviour_NT,
        anchor=anchor_NT,
        advantage=advantage_NT.astype(np.float32),
        weight=weight_NT,
        reference=looked.reference,
        value=value_NT,
        returns=returns_NT,
    )
    return targets, metrics


def _penalty(
    anchor_NT: np.ndarray, reference_NT: np.ndarray, mask_NT: np.ndarray, config: KLConfig
) -> tuple[np.ndarray, float]:
    """KL of each token where the reward pays for it, and its mean per token."""
    kl = objectives.kl(
        torch.from_numpy(anchor_NT), torch.from_numpy(reference_NT), estimator=config.estimator
    )
    kl_NT = kl.numpy().astype(np.float64) * mask_NT
    mean = float(kl_NT.sum() / max(mask_NT.sum(), 1))
    if config.placement == "reward_at_end":
        kl_NT = np.where(advantages.last_of(mask_NT), kl_NT.sum(axis=1, keepdims=True), 0.0)
    return kl_NT, mean


def _correction(
    anchor_NT: np.ndarray, rows: Rows, config: AlgorithmConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight, keep, ratio = objectives.correction(
        torch.from_numpy(anchor_NT - rows.behaviour_NT),
        torch.from_numpy(rows.mask_NT.astype(np.float32)),
        kind=config.correction.kind,
        low=config.correction.low,
        high=config.correction.high,
    )
    return weight.numpy(), keep.numpy(), ratio.numpy()


def off_policy(ratios: np.ndarray, config: CorrectionConfig) -> dict[str, float]:
    """Figures of the train/inference ratio, logged whether or not anything corrects it; of the
    tokens that a correction drops as well."""
    ratios = ratios.astype(np.float64)
    low, high = config.bounds
    return importance(
        total=float(ratios.sum()),
        squared=float(np.square(ratios).sum()),
        largest=float(ratios.max(initial=0.0)),
        capped=float(((ratios < low) | (ratios > high)).sum()),
        tokens=max(len(ratios), 1),
    )


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that knows the
    mean only, below for a worse one. 0 when all returns are equal."""
    spread = float(np.var(returns)) if len(returns) else 0.0
    return 1 - float(np.var(returns - values)) / spread if spread > 0 else 0.0
