"""The reference policy of the KL term: frozen; whole or sharded, here or in host memory, or the
policy itself without its adapters."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.adapter import switched_off
from learner.batch import Tokens, ask
from learner.config import KLConfig
from learner.engine import Engine, shard_frozen
from learner.model import Policy, export, load_model
from learner.source import ZeroSource

FOLDER = "reference"


class Reference:
    """A frozen policy. `sharded` spreads its weights over the ranks, so every use of it is a
    collective."""

    def __init__(self, policy: Policy, config: KLConfig, path: str, device: torch.device) -> None:
        policy.requires_grad_(False)
        self._path = path
        self._device = device
        self._offloads = config.reference == "offload"
        self.moves = config.update_every > 0
        self._sharded = config.reference == "sharded"
        self._source = ZeroSource(policy.model, sharded=self._sharded)
        self._policy = shard_frozen(policy) if self._sharded else policy
        if not self._sharded and not self._offloads:
            policy.to(device)

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """While its logprobs are asked for."""
        if self._offloads:
            self._policy.to(self._device)
        try:
            yield
        finally:
            if self._offloads:
                self._policy.to("cpu")

    def logprobs(self, batch: Tokens, positions: int) -> Tensor:
        with torch.no_grad():
            return ask(self._policy, batch, positions)[0]

    def become(self, source: ZeroSource) -> None:
        """Take over the weights of another policy: a collective where either is sharded."""
        self._source.copy_from(source)

    def save(self, folder: Path, *, first: bool) -> None:
        """Only where it moves: otherwise it is what `model.path` holds."""
        if self.moves:
            state = self._source.full_state(keep=first)
            if first:
                export(state, self._path, folder / FOLDER)

    def load(self, folder: Path, dtype: torch.dtype) -> None:
        if self.moves:
            saved = load_model(str(folder / FOLDER), dtype=dtype)
            self._source.copy_from(ZeroSource(saved, sharded=False))


class WithoutAdapters:
    """The policy as it was before training: a reference that takes no memory. It never moves."""

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self._engine = engine
        self._model = model

    def present(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def logprobs(self, batch: Tokens, positions: int) -> Tensor:
        with torch.no_grad(), switched_off(self._model):
            return ask(self._engine.forward, batch, positions)[0]

    def become(self, source: ZeroSource) -> None:
        raise RuntimeError("a reference without adapters cannot move")

    def save(self, folder: Path, *, first: bool) -> None:
        """Nothing: the frozen weights are in the policy's own checkpoint."""

    def load(self, folder: Path, dtype: torch.dtype) -> None:
        """Nothing."""
