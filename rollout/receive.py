"""Weights from learner to samplers: the receiving halves of the `shm` and `ray` backends.

vLLM imports this module by name in each of its workers before the model is loaded
(`worker_extension_cls="rollout.receive.Receiver"`), which registers the backends there: in this
process, in an engine core of its own, or in the workers of tensor parallelism alike.
"""

import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from blake3 import blake3
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rollout.delta import apply
from rollout.transfer import Slot, adapter_name, bits, views
from rollout.twin import Twin, pack_tied_head

HASHED = 4 << 20
"""Bytes between two looks at the clock."""


def hold_against(hf_config: Any, slots: list[Slot]) -> None:
    """vLLM accepts missing tensors with a log line and narrows wrong shapes in silence, so what is
    announced is held against what the model's own config says, name by name. Raises RuntimeError.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    announced = {slot.name: slot.shape for slot in slots}
    for name in [*expected, *announced]:
        if announced.get(name) != expected.get(name):
            raise RuntimeError(
                f"the learner's and the sampler's model differ at {name}: the learner sends "
                f"{announced.get(name, 'nothing')}, the sampler expects "
                f"{expected.get(name, 'nothing')}"
            )


class Mapped(WeightTransferEngine[Any, Any]):
    """What the backends share: weights that lie in a buffer as `lay_out` says.

    They are staged: held against their digest and, where the engine can have a twin, loaded and
    packed beside those that serve, in parts for which decoding stops shortly. An update then
    exchanges the two.
    """

    model: Any
    received_digest = ""
    """Of the bytes that serve; what the sampler acknowledges."""
    _buffer: mmap.mmap
    _slots: list[Slot]
    _weights: list[Slot]
    """Of the slots; behind them are adapters."""
    _frozen: int
    """The first so many slots never change."""
    _scales: dict[str, float]
    _frozen_digest = ""
    """Of those; empty where it is not known yet."""
    _staged = ""
    """Digest of what was staged and is not served yet."""
    _parts: Iterator[None] = iter(())
    _twin: Twin | None = None

    def _announced(self, info: Any) -> None:
        self._slots = [Slot(**slot) for slot in info.slots]
        self._frozen, self._scales = info.frozen, info.scales
        self._weights = self._slots[: self._frozen] if self._scales else self._slots
        self._frozen_digest = ""  # another learner's, in another buffer
        hold_against(self.model_config.hf_config, self._weights)

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as the model has them, adapters added in."""
        others = dict(views(self._buffer, self._slots[len(self._weights) :]))
        for name, weight in views(self._buffer, self._weights):
            if name not in self._scales:
                yield name, weight
                continue
            a, b = (others[adapter_name(name, h)].to(self.device).float() for h in ("A", "B"))
            delta = b @ a * self._scales[name]
            yield name, weight.to(self.device) + delta.to(weight.dtype)

    def begin_staging(self, update_info: Any) -> None:
        """Bring the bytes into the buffer. Whatever was staged before is forgotten."""
        self._staged = ""
        self._take(update_info)
        self._parts = self._stage(update_info.digest)

    def stage_on(self, seconds: float) -> bool:
        """Go on for about this long; whether all is done. Raises RuntimeError when the bytes are
        not those that were sent."""
        until = time.perf_counter() + seconds
        return all(time.perf_counter() <= until for _ in self._parts)

    def _take(self, update_info: Any) -> None:
        raise NotImplementedError

    def _stage(self, expected: str) -> Iterator[None]:
        # A twin that was left half loaded, by an error or a learner that died, is of no use.
        twin, self._twin = self._twin, None
        if twin is None and Twin.fits(self.model, self.vllm_config):
            twin = Twin(self.model)
        if twin is not None:
            twin.begin()
        frozen, found = self._frozen_digest, blake3(self._frozen_digest.encode())
        ends = [slot.offset for slot in self._slots[1:]] + [len(self._buffer)]
        named = self._named()
        for number, (slot, end) in enumerate(zip(self._slots, ends, strict=True)):
            if number and number == self._frozen and not frozen:
                frozen = found.hexdigest()
                found = blake3(frozen.encode())
            if number >= self._frozen or not frozen:
                for at in range(slot.offset, end, HASHED):
                    with memoryview(self._buffer) as whole:
                        found.update(whole[at : min(at + HASHED, end)])
                    yield
            if twin is not None and number < len(self._weights):
                twin.load([next(named)])
                yield
        if found.hexdigest() != expected:
            raise RuntimeError(
                f"the weights arrived damaged: digest {found.hexdigest()[:16]}, the learner sent "
                f"{expected[:16]}"
            )
        self._frozen_digest = frozen
        if twin is not None:
            twin.finish(self.model_config)
        self._twin, self._staged = twin, expected

    def start_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: Any) -> None:
        if self._staged != update_info.digest:
            raise RuntimeError(
                f"an update to weights {update_info.digest[:16]}, but staged are "
                f"{self._staged[:16] or 'none'}"
            )
        if self._twin is not None:
            self._twin.swap()
        else:
            initialize_layerwise_reload(self.model)
            self.model.load_weights(self._named())
            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                pack_tied_head(self.model)
        self.received_digest, self._staged = self._staged, ""

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    path: str
    size: int
    slots: list[dict[str, Any]]
    frozen: int
    scales: dict[str, float]


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    digest: str


class SharedMemoryReceiver(Mapped):
    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        self._announced(init_info)
        try:
            fd = os.open(init_info.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"this sampler does not see {init_info.path}: cluster.weight_directory must be one "
                "folder that the learner and every sampler share; with cluster.weight_backend=ray "
                "none is needed"
            ) from error
        try:
            self._buffer = mmap.mmap(fd, init_info.size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def _take(self, update_info: SharedMemoryUpdate) -> None:
        pass


@dataclass
class PayloadInit(WeightTransferInitInfo):
    size: int
    slots: list[dict[str, Any]]
    frozen: int
    scales: dict[str, float]


@dataclass
class PayloadUpdate(WeightTransferUpdateInfo):
    digest: str
    base: str = ""
    """Digest of the weights that the pieces are a difference from; empty when it is all of them."""
    start: int = 0
    """Where not 0, the pieces are no difference but the bytes from here on."""
    pieces: list[bytes] = field(default_factory=list)


class PayloadReceiver(Mapped):
    init_info_cls = PayloadInit
    update_info_cls = PayloadUpdate
    _held = ""
    """Digest of what the buffer holds, served or not; empty where it may be neither."""

    def init_transfer_engine(self, init_info: PayloadInit) -> None:
        self._announced(init_info)
        self._buffer = mmap.mmap(-1, init_info.size)

    def _take(self, update_info: PayloadUpdate) -> None:
        held, self._held = self._held, ""
        if update_info.base not in ("", held):
            raise RuntimeError(
                f"this sampler holds weights {held[:16] or 'of its own'}, the learner sent a "
                f"difference from {update_info.base[:16]}"
            )
        if not update_info.base:
            self._frozen_digest = ""
        if update_info.base and not update_info.start:
            apply(bits(self._buffer, self._slots), b"".join(update_info.pieces))
        else:
            start = update_info.start
            for piece in update_info.pieces:
                self._buffer[start : start + len(piece)] = piece
                start += len(piece)
        self._held = update_info.digest


WeightTransferEngineFactory.register_engine("gloo", "rollout.broadcast", "BroadcastReceiver")
WeightTransferEngineFactory.register_engine("ray", PayloadReceiver)
WeightTransferEngineFactory.register_engine("shm", SharedMemoryReceiver)


class Receiver:
    """Methods added to each of vLLM's workers, called through `collective_rpc`."""

    weight_transfer_engine: Any
    vllm_config: Any

    def expect_weights(self, info: dict[str, Any]) -> None:
        """What will come through an engine of vLLM's own, which would not look."""
        slots = [Slot(**slot) for slot in info["slots"]]
        hold_against(self.vllm_config.model_config.hf_config, slots)

    def begin_staging(self, update_info: dict[str, Any]) -> None:
        engine = self.weight_transfer_engine
        engine.begin_staging(engine.parse_update_info(update_info))

    def stage_on(self, seconds: float) -> bool:
        with set_current_vllm_config(self.vllm_config):
            return self.weight_transfer_engine.stage_on(seconds)

    def received_digest(self) -> str:
        engine = self.weight_transfer_engine
        return engine.received_digest if isinstance(engine, Mapped) else ""
