"""Learner: one rank. A plain class; `cluster/actors.py` makes each rank a Ray actor.

Every public method but `progress` is a collective: it is called on all ranks, with the same
arguments.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learner import adapter, algorithms
from learner.batch import (
    Rows,
    Slice,
    Targets,
    Tokens,
    ask,
    check_staleness,
    collate,
    minibatches,
    plan,
    read_rows,
)
from learner.config import LearnerConfig, ModelConfig, OptimConfig
from learner.credit import Looked, assign, joined
from learner.critic import Critic, load_critic
from learner.engine import Engine, Placement, join, leave
from learner.loss import Loss
from learner.model import Policy, export, load_model
from learner.objectives import Counts
from learner.packing import Work, can_pack, can_share
from learner.reference import Reference, WithoutAdapters
from learner.source import AdapterSource, ZeroSource
from learner.steering import Steering
from learner.tally import Tally
from rewards import faults
from rollout.schema import Damaged, Sealed
from rollout.transfer import (
    STAGED,
    Endpoint,
    NativeClient,
    NativeSender,
    Sender,
    Source,
    connect,
)

STATE = "learner.json"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the updates on one table did; but for `logprobs`, the same on every rank."""

    version: int
    """The policy version that they made."""
    metrics: dict[str, float]
    logprobs: list[np.ndarray] | None = None
    """float32 [T] for each row: what the policy gave its tokens before the first update, NaN where
    it was not asked. From rank 0, where `record_logprobs` wants them."""


class Learner:
    """Trains on Arrow tables. Raises ValueError when the model cannot be loaded or is not
    supported.

    `steps` is the length of the whole run, for the learning rate schedule. `temperature` is the one
    that completions are sampled with: logits are divided by it here as well. `max_tokens` is the
    longest completion that the sampler may give.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        placement: Placement,
        *,
        steps: int,
        temperature: float,
        max_tokens: int = 1,
    ) -> None:
        self._config = config
        self._model_path = model.path
        self._placement = placement
        self._steps = steps
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._critic_optim = config.optim.model_copy(update={"lr": config.critic.lr})
        self._algorithm = algorithms.build(config.algorithm)
        self._steering = Steering(config.algorithm)
        self._loss = Loss(self._algorithm, config, self._steering)
        self.version = 0
        self._progress = (0, 0)
        self._skipped = 0
        """Optimizer steps in a row"""
        self._ahead: list[tuple[np.ndarray, Looked]] = []
        """Groups and answers of the parts of the next table that came early."""
        self._sender: Sender | None = None
        join(placement)
        self._model = load_model(
            model.path,
            dtype=placement.dtype,
            gradient_checkpointing=model.gradient_checkpointing,
        )
        if model.lora.rank:
            adapter.attach(self._model, model.lora)
        policy = Policy(
            self._model,
            temperature=temperature,
            logits_chunk=config.logits_chunk,
            differentiable_entropy=config.algorithm.entropy.is_used,
        )
        self._engine = Engine(policy, config, placement)
        self._source = ZeroSource(self._model, sharded=config.zero.stage == 3)
        self._reference = self._build_reference()
        self._critic: Engine | None = None
        configs = [self._model.config]
        if self._algorithm.critic:
            critic = self._load_critic(model)
            configs.append(critic.body.config)  # it sees the rows that the policy sees
            self._critic = Engine(critic, config, placement, optim=self._critic_optim)
        packs = config.packing and all(map(can_pack, configs))
        self._work = Work.of_model(self._model.config) if packs else None
        self._shares = packs and all(map(can_share, configs))
        self._varlen = all("flash" in (each._attn_implementation or "") for each in configs)

    def _build_reference(self) -> Reference | WithoutAdapters | None:
        kl = self._config.algorithm.kl
        if not kl.coef:
            return None
        if kl.reference == "adapter":
            return WithoutAdapters(self._engine, self._model)
        policy = Policy(
            load_model(self._model_path, dtype=self._placement.dtype),
            temperature=self._temperature,
            logits_chunk=self._config.logits_chunk,
        )
        return Reference(policy, kl, self._model_path, self._engine.device)

    def _load_critic(self, model: ModelConfig) -> Critic:
        return load_critic(
            self._config.critic.path or model.path,
            dtype=self._placement.dtype,
            gradient_checkpointing=model.gradient_checkpointing,
        )

    # -- the update -------------------------------------------------------------------------------

    def update(self, table: pa.Table, max_staleness: int | None = None) -> StepReport:
        """Train on a table, `epochs x minibatches` optimizer steps; the policy version grows by
        one.

        An optimizer step whose loss or gradient is not finite is skipped and counted. Raises
        RuntimeError when that happens more than `max_skipped_steps` times in a row, and when a
        token is older than `max_staleness` versions (None looks at none).
        """
        started = time.perf_counter()
        if max_staleness is not None:
            check_staleness(table, version=self.version, bound=max_staleness)
        config = self._config.algorithm
        rows = self._read(table)
        looked = self._looked(rows)
        targets, metrics = assign(
            rows,
            looked,
            algorithm=self._algorithm,
            config=config,
            kl_coef=self._steering.kl_coef,
        )
        if config.correction.kind != "none":
            targets = replace(targets, trains=self._engine.agreed(targets.trains))
        targets = replace(targets, seam=rows.behind_seam(self.version))
        tally = Tally(config.correction)
        work = self._schedule(rows, targets)
        losses, norms = [], []
        for counts, slices in work:
            tried = Tally(config.correction)
            loss = self._accumulate(rows, targets, counts, slices, tried)
            norm, value_norm = self._step()
            targets = replace(targets, seam=None)
            if self._applied(loss, norm + value_norm):
                losses.append(loss)
                norms.append((norm, value_norm))
                tally.fold(tried)
        self._progress = (0, 0)
        metrics |= tally.summary(self._engine)
        metrics |= {
            "learner/lr": self._policy_lr(),
            "learner/micro_batches": float(sum(len(slices) for _, slices in work)),
            "learner/trained_tokens": float(sum(counts.tokens for counts, _ in work)),
        }
        metrics["learner/skipped_steps"] = float(len(work) - len(losses))
        if len(losses) < len(work):  # what made a loss NaN is in figures of the table, too
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if losses or not work:
            metrics["learner/loss"] = _mean(losses)
            metrics["learner/grad_norm"] = _mean([norm for norm, _ in norms])
            if self._critic is not None:
                metrics["critic/grad_norm"] = _mean([norm for _, norm in norms])
        if losses:
            metrics |= self._steering.move(metrics, completions=len(rows.tokens))
        self.version += 1
        moves = config.kl.update_every
        if self._reference is not None and moves and self.version % moves == 0:
            self._reference.become(self._source)
        seconds = time.perf_counter() - started
        metrics["learner/tokens_per_s"] = float(rows.lengths_N.sum()) * config.epochs / seconds
        return StepReport(self.version, metrics, self._noted(rows, looked))

    def _noted(self, rows: Rows, looked: Looked) -> list[np.ndarray] | None:
        if not self._config.record_logprobs or self._placement.rank or looked.policy is None:
            return None
        told_NT = np.where(rows.mask_NT, looked.policy, np.float32("nan"))
        lengths_N = rows.lengths_N - rows.prompt_lengths_N
        return [told_T[:length] for told_T, length in zip(told_NT, lengths_N, strict=True)]

    def _applied(self, loss: float, norm: float) -> bool:
        """Whether the optimizer step was: DeepSpeed passes over one whose norm is not finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped > self._config.max_skipped_steps:
            raise RuntimeError(
                f"in step {self.version + 1} the loss is {loss} and the gradient's norm {norm}: "
                f"{self._skipped} optimizer steps in a row are not finite "
                f"(learner.max_skipped_steps={self._config.max_skipped_steps}). What is not "
                "finite changed no weight. Look at the step's table in the run folder; or start a "
                "run from the last checkpoint (model.path=CHECKPOINT/model) with a lower "
                "learning rate"
            )
        return False

    def open(self, sealed: Sealed) -> pa.Table:
        """A table that came over the wire. Raises Damaged, on all ranks, when one of them has it
        otherwise than it was sent; ValueError when it is of another schema."""
        faults.point("learner.open")
        damage = ""
        try:
            table = sealed.open()
        except Damaged as error:
            damage, table = str(error), None
        if self._engine.max([float(table is None)])[0]:
            raise Damaged(damage or "another rank's copy of the table is damaged")
        return table

    def look(self, table: pa.Table) -> None:
        """Ask the models about a part of the next table, while the rest of it is sampled. The parts
        come in the order of its rows."""
        rows = self._read(table)
        self._ahead.append((rows.groups_N, self._look(rows)))

    def _looked(self, rows: Rows) -> Looked:
        """What was asked ahead, put together; where nothing was, the models are asked now. Raises
        RuntimeError when it was about other rows."""
        ahead, self._ahead = self._ahead, []
        if not ahead:
            return self._look(rows)
        if not np.array_equal(np.concatenate([groups_N for groups_N, _ in ahead]), rows.groups_N):
            raise RuntimeError("the learner looked ahead at other rows than those of the table")
        return joined([looked for _, looked in ahead], width=rows.mask_NT.shape[1])

    def _read(self, table: pa.Table) -> Rows:
        self._check_temperature(table)
        return read_rows(
            table,
            mask_truncated=self._config.algorithm.mask_truncated,
            judged_steps=self._algorithm.judged_steps,
        )

    def _check_temperature(self, table: pa.Table) -> None:
        sampled_at = float((table.schema.metadata or {}).get(b"temperature", b"nan"))
        if not math.isclose(sampled_at, self._temperature):
            raise ValueError(
                f"the table was sampled at temperature {sampled_at}, the learner divides its "
                f"logits by {self._temperature}: set sampler.sampling.temperature to the table's"
            )

    def _look(self, rows: Rows) -> Looked:
        """Ask the models about the whole table, each rank about its rows, before anything moves."""
        wanted: dict[str, Callable[[Tokens, int], Tensor]] = {}
        recomputed = self._config.algorithm.anchor == "recomputed"
        if not self._algorithm.supervised and (recomputed or self._config.record_logprobs):
            name = "anchor" if recomputed else "noted"
            wanted[name] = lambda batch, count: ask(self._engine.forward, batch, count)[0]
        if self._reference is not None:
            wanted["reference"] = self._reference.logprobs
        if (critic := self._critic) is not None:
            wanted["value"] = lambda batch, _: self._values(critic, batch)
        if not wanted:
            return Looked()
        found = {name: np.zeros(rows.mask_NT.shape, dtype=np.float32) for name in wanted}
        slices = self._plan(rows, rows.mask_NT, np.arange(len(rows.tokens)))
        present = self._reference.present() if self._reference else contextlib.nullcontext()
        with torch.no_grad(), present:
            for part in slices:
                batch = self._collate(rows, rows.mask_NT, part)
                for name, said in wanted.items():
                    batch.scatter(said(batch, part.positions), found[name])
        return Looked(**{name: self._engine.sum_array(array) for name, array in found.items()})

    def _plan(self, rows: Rows, wanted_NT: np.ndarray, chosen: np.ndarray) -> list[Slice]:
        """This rank's micro-batches of the chosen rows, for the wanted tokens."""
        every = plan(
            wanted_NT.sum(axis=1),
            rows.lengths_N,
            chosen,
            ranks=self._placement.ranks,
            micro_batch_tokens=self._config.micro_batch_tokens,
            work=self._work,
            siblings=rows.siblings if self._shares else None,
        )
        return every[self._placement.rank]

    def _schedule(self, rows: Rows, targets: Targets) -> list[tuple[Counts, list[Slice]]]:
        """The optimizer steps of this table: their denominators and this rank's micro-batches."""
        config, work = self._config.algorithm, []
        for epoch in range(config.epochs):
            seed = (self.version, epoch)
            for part in minibatches(rows.groups_N, config.minibatches, seed=seed):
                counts = targets.counts(part, max_tokens=self._max_tokens)
                if counts.tokens:  # a step on nothing would still move by momentum and decay
                    work.append((counts, self._plan(rows, targets.trains, part)))
        return work

    def _accumulate(
        self, rows: Rows, targets: Targets, counts: Counts, slices: list[Slice], tally: Tally
    ) -> float:
        """Backward through one optimizer step's micro-batches; its loss over all ranks."""
        total = 0.0
        for number, part in enumerate(slices):
            self._progress = (number, len(slices))
            batch = self._collate(rows, targets.trains, part)
            faults.point("learner.forward")
            said = ask(self._engine.forward, batch, part.positions)
            faults.point("learner.backward")
            loss = self._loss.policy(*said, batch, targets, counts, tally)
            total += self._engine.backward(loss)
            if self._critic is not None:
                values = self._values(self._critic, batch)
                value_loss = self._loss.value(values, batch, targets, counts, tally)
                total += 0.0 * self._critic.backward(value_loss)  # one not finite: both counted so
        self._progress = (len(slices), len(slices))
        return self._engine.sum([total])[0]

    def _collate(self, rows: Rows, trains_NT: np.ndarray, part: Slice) -> Tokens:
        work = self._work if part.layout == "packed" else None
        return collate(
            rows,
            trains_NT,
            part.rows,
            self._engine.device,
            work=work,
            budget=self._config.micro_batch_tokens,
            varlen=self._varlen,
            shares=part.layout == "shared",
        )

    @staticmethod
    def _values(critic: Engine, batch: Tokens) -> Tensor:
        value_BT = critic.forward(
            batch.tokens_BT,
            batch.trains_BT,
            position_ids=batch.position_ids_BT,
            attention_mask=batch.mask_B1TT,
        )
        return batch.per_sequence(value_BT)

    def _step(self) -> tuple[float, float]:
        """Apply the gradients; the global norms of the policy's and of the critic's."""
        faults.point("learner.optimizer")
        norm, value_norm = self._engine.step(self._policy_lr()), 0.0
        if self._critic is not None:
            value_norm = self._critic.step(self._lr(self._critic_optim))
        return norm, value_norm

    def _policy_lr(self) -> float:
        """0 while only the critic learns."""
        waits = self._critic is not None and self.version < self._config.critic.warmup_steps
        return 0.0 if waits else self._lr(self._config.optim)

    def _lr(self, optim: OptimConfig) -> float:
        return learning_rate(optim, step=self.version, steps=self._steps)

    def progress(self) -> tuple[int, int]:
        """(micro-batches done, micro-batches) of the optimizer step that runs. Not a collective."""
        return self._progress

    # -- weights ----------------------------------------------------------------------------------

    def connect(self, endpoint: Endpoint, client: NativeClient) -> None:
        """Shake hands with all samplers. Only rank 0 talks to them."""
        if self._sender is not None:
            self._sender.close()
        self._sender = None  # should there be no other
        source: Source = self._source
        if endpoint.backend in STAGED and adapter.halves(self._model):
            source = AdapterSource(self._model, sharded=self._config.zero.stage == 3)
        self._sender = connect(endpoint, source, client, rank=self._placement.rank)

    def stage_weights(self) -> tuple[str, float]:
        """What of a push needs no pause: the samplers go on decoding. On rank 0: the digest of what
        they have now, and the bytes that travelled / bytes of the weights."""
        if self._sender is None:
            raise RuntimeError("weights are to be sent before connect")
        faults.point("learner.gather")
        return self._sender.stage(), self._sender.sent

    def send_weights(self, version: int) -> None:
        """Push the weights, as this version, to all samplers, which are paused: for backends that
        do not stage."""
        if not isinstance(self._sender, NativeSender):
            raise RuntimeError("these samplers have the weights; they switch to them by themselves")
        self._sender.send(version)

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

    def save(self, folder: str, version: int) -> str:
        """Write the training state (every rank its shards) and, from rank 0, the model as a
        Hugging Face checkpoint under `model/`. The digest of the weights. Raises RuntimeError when
        they are not of this version."""
        if version != self.version:
            raise RuntimeError(f"version {version} is to be saved, the learner has {self.version}")
        path, first = Path(folder), self._placement.rank == 0
        self._engine.save(path)
        faults.point("checkpoint.after_shard")
        if self._critic is not None:
            self._critic.save(path / "critic")
        if self._reference is not None:
            self._reference.save(path, first=first)
        if first:
            state = {**self._steering.state(), "skipped": self._skipped}
            (path / STATE).write_text(json.dumps(state), encoding="utf-8")
        self.export(f"{folder}/model")
        return self._source.digest()

    def export(self, folder: str) -> None:
        first = self._placement.rank == 0
        state = self._source.full_state(keep=first)
        if first:
            export(state, self._model_path, Path(folder))

    def load(self, folder: str, version: int) -> str:
        """Continue from a saved training state. The digest of the weights."""
        path = Path(folder)
        spare = path.with_name(f"resharded-{path.name}")
        self._engine.load(path, spare)
        if self._critic is not None:
            self._critic.load(path / "critic", spare)
        if self._reference is not None:
            self._reference.load(path, self._placement.dtype)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        self._steering.restore(state)
        self._skipped = state.get("skipped", 0)
        self.version = version
        return self._source.digest()

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        leave()


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


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
