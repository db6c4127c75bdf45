"""Weights from learner to samplers: the receiving halves of the `shm` and `ray` backends.

vLLM imports this module by name in each of its workers before the model is loaded
(`worker_extension_cls="rollout.receive.Receiver"`), which registers the backends there: in this
process, in an engine core of its own, or in the workers of tensor parallelism alike.
"""

import mmap
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rollout.delta import apply
from rollout.transfer import Slot, bits, digest, views


class Mapped(WeightTransferEngine[Any, Any]):
    """What the backends share: weights that lie in a buffer as `lay_out` says, loaded from there
    once their digest is right."""

    model: Any
    received_digest = ""
    """Of the bytes loaded last; what the sampler acknowledges."""
    _buffer: mmap.mmap
    _slots: list[Slot]

    def _check(self, slots: list[Slot]) -> None:
        """vLLM accepts missing tensors with a log line and narrows wrong shapes in silence, so what
        is announced is held against what the model's own config says, name by name."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.model_config.hf_config)
        expected = {name: list(p.shape) for name, p in model.named_parameters()}
        announced = {slot.name: slot.shape for slot in slots}
        for name in [*expected, *announced]:
            if announced.get(name) != expected.get(name):
                raise RuntimeError(
                    f"the learner's and the sampler's model differ at {name}: the learner sends "
                    f"{announced.get(name, 'nothing')}, the sampler expects "
                    f"{expected.get(name, 'nothing')}"
                )

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def _load(self, expected: str) -> None:
        self.received_digest = digest(self._buffer)
        if self.received_digest != expected:
            raise RuntimeError(
                f"the weights arrived damaged: digest {self.received_digest[:16]}, the learner "
                f"sent {expected[:16]}"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.model.load_weights(views(self._buffer, self._slots))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            # The CPU linear kernels hold packed copies. Reloading refreshes those of every layer
            # but a tied lm_head, whose weight is loaded under the embedding's name: without this
            # line its logits silently stay those of the old weights.
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    path: str
    size: int
    slots: list[dict[str, Any]]


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    digest: str


class SharedMemoryReceiver(Mapped):
    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        slots = [Slot(**slot) for slot in init_info.slots]
        self._check(slots)
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
        self._slots = slots

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self._load(update_info.digest)


@dataclass
class PayloadInit(WeightTransferInitInfo):
    size: int
    slots: list[dict[str, Any]]


@dataclass
class PayloadUpdate(WeightTransferUpdateInfo):
    digest: str
    base: str
    """Digest of the weights that the pieces are a difference from; empty when it is all of them."""
    pieces: list[bytes]


class PayloadReceiver(Mapped):
    init_info_cls = PayloadInit
    update_info_cls = PayloadUpdate

    def init_transfer_engine(self, init_info: PayloadInit) -> None:
        self._slots = [Slot(**slot) for slot in init_info.slots]
        self._check(self._slots)
        self._buffer = mmap.mmap(-1, init_info.size)

    def receive_weights(self, update_info: PayloadUpdate) -> None:
        if not update_info.base:
            start = 0
            for piece in update_info.pieces:
                self._buffer[start : start + len(piece)] = piece
                start += len(piece)
        elif update_info.base == self.received_digest:
            apply(bits(self._buffer, self._slots), b"".join(update_info.pieces))
        else:
            raise RuntimeError(
                f"this sampler holds weights {self.received_digest[:16] or 'of its own'}, the "
                f"learner sent a difference from {update_info.base[:16]}"
            )
        self._load(update_info.digest)


WeightTransferEngineFactory.register_engine("ray", PayloadReceiver)
WeightTransferEngineFactory.register_engine("shm", SharedMemoryReceiver)


class Receiver:
    """Methods added to each of vLLM's workers, called through `collective_rpc`."""

    weight_transfer_engine: Any

    def received_digest(self) -> str:
        engine = self.weight_transfer_engine
        return engine.received_digest if isinstance(engine, Mapped) else ""
