"""Learner: one rank. A plain class; `cluster/actors.py` makes each rank a Ray actor.

Every public method but `progress` is a collective: it is called on all ranks, with the same
arguments.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from learner import algorithms, objectives
from learner.batch import Counts, MicroBatch, Slice, collate, plan, read_rows
from learner.config import LearnerConfig, ModelConfig, OptimConfig
from learner.engine import Engine, Placement, join, leave
from learner.model import Policy, export, load_model
from learner.source import ZeroSource
from rollout.transfer import Client, Endpoint, Sender, connect


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update did; the same on every rank."""

    version: int
    """The policy version that the update made."""
    metrics: dict[str, float]


@dataclass
class _Tally:
    """Sums over the trained tokens of this rank."""

    loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    ratio: float = 0.0
    ratio_squared: float = 0.0
    kl_behaviour: float = 0.0
    kl_reference: float = 0.0
    largest_ratio: float = 0.0


class Learner:
    """Trains on Arrow tables. Raises ValueError when the model cannot be loaded or is not
    supported.

    `steps` is the length of the whole run, for the learning rate schedule. `temperature` is the one
    that completions are sampled with: logits are divided by it here as well.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        placement: Placement,
        *,
        steps: int,
        temperature: float,
    ) -> None:
        self._config = config
        self._model_path = model.path
        self._placement = placement
        self._steps = steps
        self._temperature = temperature
        self._algorithm = algorithms.build(config.algorithm)
        self.version = 0
        self._progress = (0, 0)
        self._sender: Sender | None = None
        join(placement)
        self._model = load_model(
            model.path,
            dtype=placement.dtype,
            gradient_checkpointing=model.gradient_checkpointing,
        )
        self._reference: Policy | None = None
        if config.algorithm.kl.coef > 0:
            self._reference = self._frozen(load_model(model.path, dtype=placement.dtype))
        policy = Policy(self._model, temperature=temperature, logits_chunk=config.logits_chunk)
        self._engine = Engine(policy, config, placement)
        if self._reference is not None:
            self._reference.to(self._engine.device)
        self._source = ZeroSource(self._model, sharded=config.zero.stage == 3)

    def _frozen(self, model: Any) -> Policy:
        policy = Policy(
            model, temperature=self._temperature, logits_chunk=self._config.logits_chunk
        )
        return policy.requires_grad_(False)

    # -- the update -------------------------------------------------------------------------------

    def update(self, table: pa.Table) -> StepReport:
        """One optimizer step on a table; the policy version grows by one.

        Raises RuntimeError when the loss or the gradient is not finite; in the first case the
        weights are still those of the version before.
        """
        started = time.perf_counter()
        self._check_temperature(table)
        rows = read_rows(table, self._algorithm)
        placement = self._placement
        slices = plan(
            rows, ranks=placement.ranks, micro_batch_tokens=self._config.micro_batch_tokens
        )[placement.rank]
        tally = _Tally()
        for number, part in enumerate(slices):
            self._progress = (number, len(slices))
            batch = collate(rows, part.rows, self._engine.device)
            self._engine.backward(self._loss(batch, part, rows.counts, tally))
        self._progress = (len(slices), len(slices))
        metrics = self._summary(tally, max(rows.counts.tokens, 1))
        if not math.isfinite(metrics["learner/loss"]):
            raise RuntimeError(
                f"the loss of step {self.version + 1} is {metrics['learner/loss']}; nothing was "
                "updated. Resume from the last checkpoint with a lower learning rate, or look at "
                "the step's table in the run folder"
            )
        lr = learning_rate(self._config.optim, step=self.version, steps=self._steps)
        grad_norm = self._engine.step(lr)
        if not math.isfinite(grad_norm):
            raise RuntimeError(
                f"the gradient norm of step {self.version + 1} is {grad_norm}: the weights in "
                "memory are lost, resume from the last checkpoint"
            )
        self.version += 1
        seconds = time.perf_counter() - started
        metrics |= {
            "learner/grad_norm": grad_norm,
            "learner/lr": lr,
            "learner/micro_batches": float(len(slices)),
            "learner/trained_tokens": float(rows.counts.tokens),
            "learner/tokens_per_s": float(rows.lengths.sum()) / seconds,
        }
        return StepReport(version=self.version, metrics=metrics)

    def _check_temperature(self, table: pa.Table) -> None:
        sampled_at = float((table.schema.metadata or {}).get(b"temperature", b"nan"))
        if not math.isclose(sampled_at, self._temperature):
            raise ValueError(
                f"the table was sampled at temperature {sampled_at}, the learner divides its "
                f"logits by {self._temperature}: set sampler.sampling.temperature to the table's"
            )

    def _loss(self, batch: MicroBatch, part: Slice, counts: Counts, tally: _Tally) -> Tensor:
        """This micro-batch's share of the step's loss."""
        inputs = (batch.tokens_BT, batch.trains_BT, batch.targets_BT)
        logp_BT, entropy_BT = self._engine.forward(*inputs, positions=part.positions)
        trains_BT = batch.trains_BT.to(torch.float32)
        algorithm = self._algorithm
        loss_BT, clipped_BT = algorithm.surrogate(
            logp_BT, batch.behaviour_BT, batch.advantage_B1, algorithm.clip
        )
        if self._reference is not None:
            with torch.no_grad():
                reference_BT, _ = self._reference(*inputs, positions=part.positions)
            kl_BT = objectives.k3(logp_BT, reference_BT)
            loss_BT = loss_BT + self._config.algorithm.kl.coef * kl_BT
            tally.kl_reference += float((kl_BT.detach() * trains_BT).sum())
        weight_BT = algorithm.reduction(trains_BT, counts.tokens, counts.sequences)
        loss = (loss_BT * weight_BT).sum()
        with torch.no_grad():
            ratio_BT = objectives.ratio(logp_BT, batch.behaviour_BT) * trains_BT
            tally.loss += float(loss)
            tally.entropy += float(entropy_BT.sum())
            tally.clipped += float((clipped_BT * trains_BT).sum())
            tally.ratio += float(ratio_BT.sum())
            tally.ratio_squared += float(ratio_BT.square().sum())
            tally.largest_ratio = max(tally.largest_ratio, float(ratio_BT.max()))
            tally.kl_behaviour += float(
                (objectives.k3(batch.behaviour_BT, logp_BT) * trains_BT).sum()
            )
        return loss

    def _summary(self, tally: _Tally, tokens: int) -> dict[str, float]:
        names = ("loss", "entropy", "clipped", "ratio", "ratio_squared")
        names += ("kl_behaviour", "kl_reference")
        sums = dict(
            zip(names, self._engine.sum([vars(tally)[name] for name in names]), strict=True)
        )
        metrics = {
            "learner/loss": sums["loss"],
            "policy/entropy": sums["entropy"] / tokens,
            "policy/clip_fraction": sums["clipped"] / tokens,
            "policy/kl_behaviour": sums["kl_behaviour"] / tokens,
            "policy/importance_mean": sums["ratio"] / tokens,
            "policy/importance_max": self._engine.max([tally.largest_ratio])[0],
            "policy/importance_ess": sums["ratio"] ** 2
            / max(sums["ratio_squared"] * tokens, 1e-30),
        }
        if self._reference is not None:
            metrics["policy/kl_reference"] = sums["kl_reference"] / tokens
        return metrics

    def progress(self) -> tuple[int, int]:
        """(micro-batches done, micro-batches) of the update that runs. Not a collective."""
        return self._progress

    # -- weights ----------------------------------------------------------------------------------

    def connect(self, endpoint: Endpoint, client: Client) -> None:
        """Shake hands with all samplers. Only rank 0 talks to them."""
        if self._sender is not None:
            self._sender.close()
        self._sender = connect(endpoint, self._source, client, rank=self._placement.rank)

    def send_weights(self) -> str:
        """Push the weights of `version` to all samplers; the digest sent, on rank 0."""
        if self._sender is None:
            raise RuntimeError("send_weights before connect")
        return self._sender.send(self.version)

    def score(self, token_ids: list[int]) -> list[float]:
        """Logprob (temperature 1) of each token but the first: the learner's side of the canary."""
        tokens_BT = torch.tensor([token_ids], device=self._engine.device)
        trains_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        trains_BT[0, -1] = False
        with torch.no_grad():
            logp_BT, _ = self._engine.forward(
                tokens_BT,
                trains_BT,
                tokens_BT.roll(-1, dims=1),
                positions=len(token_ids) - 1,
                temperature=1.0,
            )
        return logp_BT[0, :-1].tolist()

    # -- disk -------------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Write the training state (every rank its shards) and, from rank 0, the model as a
        Hugging Face checkpoint under `model/`."""
        self._engine.save(Path(folder))
        self.export(f"{folder}/model")

    def export(self, folder: str) -> None:
        first = self._placement.rank == 0
        state = self._source.full_state(keep=first)
        if first:
            export(state, self._model_path, Path(folder))

    def load(self, folder: str, version: int) -> None:
        """Continue from a saved training state."""
        self._engine.load(Path(folder))
        self.version = version

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        leave()


def learning_rate(config: OptimConfig, *, step: int, steps: int) -> float:
    """Linear rise over `warmup_steps`, then a cosine from `lr` to `lr x final_lr_fraction` at the
    last step.

    >>> learning_rate(OptimConfig(lr=1.0, warmup_steps=4), step=0, steps=10)
    0.25
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(steps - config.warmup_steps - 1, 1)
    done = min((step - config.warmup_steps) / span, 1.0)
    share = config.final_lr_fraction
    return config.lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * done)))
