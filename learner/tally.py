"""What the updates of one table did, as sums over trained tokens."""

from collections import defaultdict

import torch
from torch import Tensor

from learner import objectives
from learner.config import CorrectionConfig
from learner.engine import Engine


def importance(
    *, total: float, squared: float, largest: float, capped: float, tokens: float
) -> dict[str, float]:
    """Figures of importance weights from their sum, sum of squares, maximum and number out of
    bounds; the effective sample size as a share of the tokens."""
    return {
        "policy/importance_mean": total / tokens,
        "policy/importance_max": largest,
        "policy/importance_ess": total**2 / max(squared * tokens, 1e-30),
        "policy/importance_capped": capped / tokens,
    }


class Tally:
    """Sums of this rank; `summary` adds them up over all ranks. The same names on every rank."""

    def __init__(self, config: CorrectionConfig) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._largest = 0.0
        self._bounds = config.bounds

    @torch.no_grad()
    def add(self, mask_BT: Tensor, **values_BT: Tensor) -> None:
        """Per-token values, summed where the mask is 1. `tokens` is what the sums are divided by:
        given once per micro-batch."""
        for name, value_BT in values_BT.items():
            self._sums[name] += float((value_BT * mask_BT).sum())

    @torch.no_grad()
    def off_policy(self, mask_BT: Tensor, logp_BT: Tensor, behaviour_BT: Tensor) -> None:
        """Ratios policy / behaviour, where nothing separates staleness from the engines' gap."""
        ratio_BT = objectives.ratio(logp_BT, behaviour_BT) * mask_BT
        low, high = self._bounds
        self.add(
            mask_BT,
            ratio=ratio_BT,
            ratio_squared=ratio_BT.square(),
            capped=((ratio_BT < low) | (ratio_BT > high)).float(),
        )
        self._largest = max(self._largest, float(ratio_BT.max()))

    def fold(self, other: "Tally") -> None:
        for name, value in other._sums.items():
            self._sums[name] += value
        self._largest = max(self._largest, other._largest)

    def summary(self, engine: Engine) -> dict[str, float]:
        """Means per trained token over all ranks. A collective."""
        names = sorted(self._sums)
        sums = dict(zip(names, engine.sum([self._sums[name] for name in names]), strict=True))
        tokens = max(sums.pop("tokens", 0.0), 1.0)
        metrics = {}
        seam_tokens, seam_gap = sums.pop("seam_tokens", 0.0), sums.pop("seam_gap", 0.0)
        if seam_tokens:
            metrics["policy/kv_drift"] = seam_gap / seam_tokens
        if "ratio" in sums:
            metrics |= importance(
                total=sums.pop("ratio"),
                squared=sums.pop("ratio_squared"),
                largest=engine.max([self._largest])[0],
                capped=sums.pop("capped"),
                tokens=tokens,
            )
        for name, value in sums.items():
            group = "critic" if name.startswith("value_") else "policy"
            metrics[f"{group}/{name}"] = value / tokens
        return metrics
