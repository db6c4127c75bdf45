"""What the updates of one table did, as sums over trained tokens."""

from collections import defaultdict

import torch
from torch import Tensor

from learner import objectives
from learner.batch import Tokens
from learner.engine import Engine


class Tally:
    """Sums of this rank; `summary` adds them up over all ranks. The same names on every rank."""

    def __init__(self, *, capped_beyond: float) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._largest = 0.0
        self._capped_beyond = capped_beyond

    @torch.no_grad()
    def add(self, mask_BT: Tensor, **values_BT: Tensor) -> None:
        """Per-token values, summed where the mask is 1."""
        for name, value_BT in values_BT.items():
            self._sums[name] += float((value_BT * mask_BT).sum())

    @torch.no_grad()
    def off_policy(self, batch: Tokens, behaviour_BT: Tensor, policy_BT: Tensor) -> None:
        """Importance weights policy / behaviour: logged whether or not anything corrects them."""
        mask_BT = batch.trains_BT.to(torch.float32)
        ratio_BT = objectives.ratio(policy_BT, behaviour_BT) * mask_BT
        self.add(
            mask_BT,
            ratio=ratio_BT,
            ratio_squared=ratio_BT.square(),
            capped=(ratio_BT > self._capped_beyond).float(),
            kl_behaviour=objectives.kl(behaviour_BT, policy_BT, estimator="k3"),
            tokens=mask_BT,
        )
        self._largest = max(self._largest, float(ratio_BT.max()))

    def summary(self, engine: Engine) -> dict[str, float]:
        """Means per trained token over all ranks. A collective."""
        names = sorted(self._sums)
        sums = dict(zip(names, engine.sum([self._sums[name] for name in names]), strict=True))
        tokens = max(sums.pop("tokens", 0.0), 1.0)
        ratio, squared = sums.pop("ratio", 0.0), sums.pop("ratio_squared", 0.0)
        metrics = {
            "policy/importance_mean": ratio / tokens,
            "policy/importance_max": engine.max([self._largest])[0],
            "policy/importance_ess": ratio**2 / max(squared * tokens, 1e-30),
            "policy/importance_capped": sums.pop("capped", 0.0) / tokens,
        }
        for name, value in sums.items():
            group = "critic" if name.startswith("value_") else "policy"
            metrics[f"{group}/{name}"] = value / tokens
        return metrics
