"""Coefficients that move during a run: of the KL term towards a target, of the entropy bonus away
from a floor. Their state belongs to a checkpoint."""

from learner.config import AlgorithmConfig

KL_STEP = 0.2
"""Largest relative error that the KL controller answers to."""


class Steering:
    def __init__(self, config: AlgorithmConfig) -> None:
        self._config = config
        self.kl_coef = config.kl.coef
        self.entropy_coef = config.entropy.coef

    def move(self, metrics: dict[str, float], *, completions: int) -> dict[str, float]:
        """After a table, by what it measured; the coefficients from here on. What it could not
        measure moves nothing.

        KL (arXiv 1909.08593, section 2.2): coef *= 1 + clip(kl / target - 1, +-0.2) share, share
        being completions / horizon, at most 1. Entropy (arXiv 2505.22312, section 4.2): coef +=
        step below the floor, -= step above it, within coef ... limit.
        """
        kl, entropy = self._config.kl, self._config.entropy
        if kl.target is not None and "policy/kl_reference" in metrics:
            error = metrics["policy/kl_reference"] / kl.target - 1
            error = min(max(error, -KL_STEP), KL_STEP)
            self.kl_coef *= 1 + error * min(completions / kl.horizon, 1.0)
        if entropy.floor is not None and "policy/entropy" in metrics:
            way = 1 if metrics["policy/entropy"] < entropy.floor else -1
            moved = self.entropy_coef + way * entropy.step
            self.entropy_coef = min(max(moved, entropy.coef), entropy.limit)
        found = {}
        if kl.coef:
            found["policy/kl_coef"] = self.kl_coef
        if entropy.is_used:
            found["policy/entropy_coef"] = self.entropy_coef
        return found

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef, "entropy_coef": self.entropy_coef}

    def restore(self, state: dict[str, float]) -> None:
        self.kl_coef, self.entropy_coef = state["kl_coef"], state["entropy_coef"]
