"""Weights from learner to samplers: the receiving half of the `shm` backend.

vLLM imports this module by name in each of its workers before the model is loaded
(`worker_extension_cls="rollout.receive.Receiver"`), which registers the backend there: in this
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

from rollout.transfer import Slot, digest, views


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    path: str
    size: int
    slots: list[dict[str, Any]]


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    digest: str


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    model: Any
    received_digest = ""
    """Of the bytes loaded last; what the sampler acknowledges."""

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        slots = [Slot(**slot) for slot in init_info.slots]
        self._check(slots)
        try:
            fd = os.open(init_info.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"this sampler does not see {init_info.path}: cluster.weight_directory must be one "
                "folder that the learner and every sampler share"
            ) from error
        try:
            self._buffer = mmap.mmap(fd, init_info.size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._slots = slots

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

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self.received_digest = digest(self._buffer)
        if self.received_digest != update_info.digest:
            raise RuntimeError(
                f"the weights arrived damaged: digest {self.received_digest[:16]}, the learner "
                f"sent {update_info.digest[:16]}"
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


WeightTransferEngineFactory.register_engine("shm", SharedMemoryReceiver)


class Receiver:
    """Methods added to each of vLLM's workers, called through `collective_rpc`."""

    weight_transfer_engine: Any

    def received_digest(self) -> str:
        engine = self.weight_transfer_engine
        return engine.received_digest if isinstance(engine, SharedMemoryReceiver) else ""
