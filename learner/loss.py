"""The loss of a micro-batch: its share of the optimizer step's, by the row and the options.

B here is a row per sequence, packed or not (`Tokens.per_sequence`).
"""

import torch
from torch import Tensor

from learner import objectives
from learner.algorithms import Algorithm
from learner.batch import Targets, Tokens
from learner.config import LearnerConfig
from learner.objectives import Counts
from learner.steering import Steering
from learner.tally import Tally


class Loss:
    """Shares of micro-batches and ranks add up to the loss of the step: every denominator is one
    of `counts`, known before the first backward."""

    def __init__(self, algorithm: Algorithm, config: LearnerConfig, steering: Steering) -> None:
        self._algorithm = algorithm
        self._config = config
        self._steering = steering

    def policy(
        self,
        logp_BT: Tensor,
        entropy_BT: Tensor,
        batch: Tokens,
        targets: Targets,
        counts: Counts,
        tally: Tally,
    ) -> Tensor:
        config, kl = self._config.algorithm, self._config.algorithm.kl
        mask_BT = batch.trains_ST.to(torch.float32)
        anchor_BT = batch.gather(targets.anchor)
        advantage_BT = batch.gather(targets.advantage)
        loss_BT, clipped_BT = self._algorithm.surrogate(logp_BT, anchor_BT, advantage_BT, mask_BT)
        if targets.weight is not None:
            loss_BT = loss_BT * batch.gather(targets.weight)
        behaviour_BT = batch.gather(targets.behaviour)
        tally.add(
            mask_BT,
            tokens=mask_BT,
            clip_fraction=clipped_BT,
            clip_fraction_high=clipped_BT * (advantage_BT > 0),
            clip_fraction_low=clipped_BT * (advantage_BT < 0),
            entropy=entropy_BT,
            kl_behaviour=objectives.kl(behaviour_BT, logp_BT, estimator="k3"),
        )
        if config.anchor == "behaviour":
            tally.off_policy(mask_BT, logp_BT, behaviour_BT)
        if targets.seam is not None:
            seam_BT = batch.gather(targets.seam) * mask_BT
            tally.add(seam_BT, seam_tokens=seam_BT, seam_gap=(logp_BT - behaviour_BT).abs())
        if targets.reference is not None and kl.placement == "loss":
            reference_BT = batch.gather(targets.reference)
            kl_BT = objectives.kl(logp_BT, reference_BT, estimator=kl.estimator)
            tally.add(mask_BT, kl_reference=kl_BT)
            if kl.importance:
                kl_BT = kl_BT * objectives.ratio(logp_BT, anchor_BT)
            loss_BT = loss_BT + self._steering.kl_coef * kl_BT
        if self._steering.entropy_coef:
            loss_BT = loss_BT - self._steering.entropy_coef * entropy_BT
        return (loss_BT * self._algorithm.reduction(mask_BT, counts)).sum()

    def value(
        self, value_BT: Tensor, batch: Tokens, targets: Targets, counts: Counts, tally: Tally
    ) -> Tensor:
        """The critic's: the mean over the step's tokens."""
        if targets.value is None or targets.returns is None:
            raise RuntimeError("the targets hold nothing for a critic")
        loss_BT, clipped_BT = objectives.value_loss(
            value_BT,
            batch.gather(targets.value),
            batch.gather(targets.returns),
            clip=self._config.critic.clip,
        )
        mask_BT = batch.trains_ST.to(torch.float32)
        tally.add(mask_BT, value_loss=loss_BT, value_clip_fraction=clipped_BT, value_mean=value_BT)
        return (loss_BT * objectives.token_mean(mask_BT, counts)).sum()
