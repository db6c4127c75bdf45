"""Weights by broadcast between CPUs: both halves of the `gloo` backend.

It is vLLM's `nccl` backend in all but the wire: the same protocol, handshake, ranks and packed
buckets, over gloo and without streams. So everything around a push to GPUs (who is paused, who
takes part, what is stamped and when) runs where there is none. `ray` is quicker between CPUs.

Imports vLLM, in the learner's rank too, as `nccl` does.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, distributed
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferInitInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from rollout.twin import pack_tied_head

BUCKET = 64 << 20
"""Bytes from which on a bucket is sent. Samplers are told: both sides cut by it."""


class Group:
    """A group of its own, beside the learner's. Raises RuntimeError when somebody does not come, or
    does not take part, within `seconds`."""

    def __init__(self, store: Any, *, rank: int, size: int, seconds: float) -> None:
        limit = timedelta(seconds=seconds)
        self._group: Any = distributed.ProcessGroupGloo(store, rank, size, limit)

    def broadcast(self, flat: Tensor) -> None:
        """From rank 0, into the others' tensor."""
        options = distributed.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([flat], options).wait()

    def destroy(self) -> None:
        self._group = None


def meeting(address: str, port: int, *, size: int, seconds: float) -> Any:
    """Where a group gathers. Port 0 opens it, at a free one: its `port`."""
    return distributed.TCPStore(
        address, port, size, port == 0, timedelta(seconds=seconds), wait_for_workers=False
    )


def buckets(
    metadata: Iterable[ParamMeta], most: int
) -> Iterator[tuple[list[ParamMeta], list[int]]]:
    """Tensors that travel together, and the bytes of each."""
    together: list[ParamMeta] = []
    sizes: list[int] = []
    for meta in metadata:
        together.append(meta)
        sizes.append(torch.Size(meta.shape).numel() * meta.dtype.itemsize)
        if sum(sizes) >= most:
            yield together, sizes
            together, sizes = [], []
    if together:
        yield together, sizes


@dataclass
class BroadcastInit(WeightTransferInitInfo):
    """What a sampler is told. `rank_offset` is its own."""

    address: str
    port: int
    rank_offset: int
    world_size: int
    seconds: float
    bucket: int


class BroadcastReceiver(NCCLWeightTransferEngine):
    init_info_cls = cast(Any, BroadcastInit)

    def init_transfer_engine(self, init_info: Any) -> None:
        workers = self.parallel_config
        worker = workers.data_parallel_index * workers.world_size + workers.rank
        self.shutdown()  # of the connection before
        self.packed_buffer_size_bytes = init_info.bucket
        size, seconds = init_info.world_size, init_info.seconds
        store = meeting(init_info.address, init_info.port, size=size, seconds=seconds)
        rank = init_info.rank_offset + worker
        group = Group(store, rank=rank, size=size, seconds=seconds)
        self.model_update_group = cast(Any, group)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        group: Any = self.model_update_group
        columns = update_info.names, update_info.dtype_names, update_info.shapes
        announced = [
            ParamMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(*columns, strict=True)
        ]
        for together, sizes in buckets(announced, self.packed_buffer_size_bytes):
            flat = torch.empty(sum(sizes), dtype=torch.uint8)
            group.broadcast(flat)
            cast(Any, self.model).load_weights(
                (meta.name, part.view(meta.dtype).view(meta.shape))
                for meta, part in zip(together, flat.split(sizes), strict=True)
            )

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        pack_tied_head(self.model)


@dataclass
class BroadcastTrainerInit(TrainerInitInfo):
    backend: ClassVar[str] = "gloo"

    address: str
    """Of this machine"""
    world_size: int
    """The learner's rank 0 and all workers of all samplers"""
    seconds: float


class BroadcastTrainer(NCCLTrainerWeightTransferEngine):
    """vLLM's own sender, which announces, broadcasts beside the samplers' receiving, and ends."""

    init_info_cls = cast(Any, BroadcastTrainerInit)

    @classmethod
    def trainer_init(
        cls, init_info: Any, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        if source is None:
            raise RuntimeError("a broadcast of weights needs their source")
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        engine.packed_buffer_size_bytes = BUCKET
        if not engine.is_sender:
            return engine
        size, seconds = init_info.world_size, init_info.seconds
        store = meeting(init_info.address, 0, size=size, seconds=seconds)
        told = BroadcastInit(init_info.address, store.port, 1, size, seconds, BUCKET)
        # The samplers' half waits for this one, so the two are under way at the same time.
        beside = ThreadPoolExecutor(max_workers=1)
        try:
            shaking = beside.submit(client.init_weight_transfer_engine, asdict(told))
            group = Group(store, rank=0, size=size, seconds=seconds)
            engine.model_update_group = cast(Any, group)
            shaking.result()
        finally:
            beside.shutdown(wait=False)
        return engine

    def _broadcast(self, source: WeightSource, meta: list[ParamMeta]) -> None:
        if not self.is_sender:
            for _ in source:  # it may be a collective
                pass
            return
        group: Any = self.model_update_group
        named = self._checked_iter(source, meta)
        for together, _ in buckets(meta, self.packed_buffer_size_bytes):
            parts = [next(named)[1].contiguous().view(-1).view(torch.uint8) for _ in together]
            group.broadcast(torch.cat(parts))
        next(named, None)  # its check that this was all


WeightTransferTrainerFactory.register_engine("gloo", BroadcastTrainer)
