"""A policy and a critic of one matrix each, trained by the real credit, plan and loss: thousands of
cases in seconds. What DeepSpeed does to gradients is tested on real ranks, in test_learner.py."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner import algorithms
from learner.batch import Rows, Tokens, collate, minibatches, plan, read_rows
from learner.config import LearnerConfig
from learner.credit import Looked, assign
from learner.loss import Loss
from learner.steering import Steering
from learner.tally import Tally
from rollout import ScoredGroup

VOCABULARY = 450
CPU = torch.device("cpu")


class Toy:
    """Bigrams: the logits of a token depend on the one before it, and so does the value."""

    def __init__(self, config: LearnerConfig, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.algorithm = algorithms.build(config.algorithm)
        self.steering = Steering(config.algorithm)
        self.weights = (torch.randn(VOCABULARY, VOCABULARY).double() / 4).requires_grad_(True)
        self.values = (torch.randn(VOCABULARY).double() / 4).requires_grad_(True)
        self.reference = (self.weights + torch.randn(VOCABULARY, VOCABULARY) / 4).detach()

    def said(self, batch: Tokens, weights: Tensor) -> tuple[Tensor, Tensor]:
        every_BTV = weights[batch.tokens_BT].log_softmax(-1)
        logp_BT = every_BTV.gather(2, batch.targets_BT[..., None])[..., 0]
        entropy_BT = -(every_BTV.exp() * every_BTV).sum(-1)
        return logp_BT * batch.trains_BT, entropy_BT * batch.trains_BT

    def behave(self, scored: ScoredGroup) -> ScoredGroup:
        """The group as an older policy would have sampled it: logprobs off by about 0.4."""
        completions = []
        for number, completion in enumerate(scored.group.completions):
            before = [int(scored.group.prompt.token_ids[-1]), *completion.token_ids[:-1].tolist()]
            logp_TV = self.weights[before].detach().log_softmax(-1)
            chosen = torch.from_numpy(completion.token_ids.astype(np.int64))
            logp_T = logp_TV.gather(1, chosen[:, None])[:, 0].numpy()
            noise_T = np.random.default_rng((scored.group.ticket, number)).normal(
                0, 0.4, len(chosen)
            )
            logprobs = (logp_T + noise_T).astype(np.float32)
            completions.append(replace(completion, logprobs=logprobs))
        return replace(scored, group=replace(scored.group, completions=tuple(completions)))

    def look(self, rows: Rows) -> Looked:
        batch = collate(rows, rows.mask_NT, np.arange(len(rows.tokens)), CPU)
        found = [np.zeros(rows.mask_NT.shape, dtype=np.float32) for _ in range(3)]
        with torch.no_grad():
            batch.scatter(self.said(batch, self.weights)[0], found[0])
            batch.scatter(self.said(batch, self.reference)[0], found[1])
            batch.scatter(self.values[batch.tokens_BT] * batch.trains_BT, found[2])
        config = self.config.algorithm
        return Looked(
            anchor=found[0] if config.anchor == "recomputed" else None,
            reference=found[1] if config.kl.coef else None,
            value=found[2] if self.algorithm.critic else None,
        )

    def losses(self, table: pa.Table, *, ranks: int = 1, budget: int = 100_000, version: int = 0):
        """The loss of each optimizer step, policy's and critic's, added up over ranks and
        micro-batches as DeepSpeed adds up their gradients."""
        config = self.config.algorithm
        rows = read_rows(
            table,
            mask_truncated=config.mask_truncated,
            judged_steps=self.algorithm.judged_steps,
        )
        targets, _ = assign(
            rows,
            self.look(rows),
            algorithm=self.algorithm,
            config=config,
            kl_coef=self.steering.kl_coef,
        )
        objective = Loss(self.algorithm, self.config, self.steering)
        tally = Tally(config.correction)
        for part in minibatches(rows.groups_N, config.minibatches, seed=(version, 0)):
            counts = targets.counts(part, max_tokens=32)
            sizes = targets.trains.sum(axis=1)
            planned = plan(sizes, rows.lengths_N, part, ranks=ranks, micro_batch_tokens=budget)
            total = torch.zeros((), dtype=torch.float64)
            for slices in planned:
                for piece in slices:
                    batch = collate(rows, targets.trains, piece.rows, CPU)
                    total = total + objective.policy(
                        *self.said(batch, self.weights), batch, targets, counts, tally
                    )
                    if self.algorithm.critic:
                        value = self.values[batch.tokens_BT] * batch.trains_BT
                        total = total + objective.value(value, batch, targets, counts, tally)
            yield total

    def gradient(self, table: pa.Table, *, ranks: int = 1, budget: int = 100_000) -> np.ndarray:
        """Of the first optimizer step."""
        loss = next(self.losses(table, ranks=ranks, budget=budget))
        leaves = (self.weights, self.values)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        parts = [
            g if g is not None else torch.zeros_like(x) for g, x in zip(found, leaves, strict=True)
        ]
        return torch.cat([p.flatten() for p in parts]).numpy()
