"""Weights from learner to samplers: the sending half, and the layout both halves agree on.

The learner imports this file, so it does not import vLLM (four seconds and half a gigabyte per
rank); the receiving half is `rollout/receive.py`.

The `shm` backend: rank 0 writes every tensor into one memory-mapped file, each sampler maps the
same file and loads from it. The file's name lives only for the length of the handshake: it is
unlinked as soon as every sampler holds its mapping, so nothing is left behind whatever dies later.
"""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from blake3 import blake3

Backend = Literal["shm", "nccl", "ipc"]

ALIGNMENT = 64


class TensorMeta(NamedTuple):
    """Name (as in the Hugging Face checkpoint), wire dtype and full shape of one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source(Protocol):
    """The learner's weights, re-iterable; the structure of vLLM's WeightSource.

    Iterating may be a collective: every rank does it, in the order of `metadata()`.
    """

    def metadata(self) -> Sequence[TensorMeta]: ...
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class Client(Protocol):
    """The control plane towards all samplers; the structure of vLLM's VLLMWeightSyncClient.

    Every call reaches every sampler and returns when all have answered.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """The sending half of a backend. `send` is called on every learner rank."""

    def send(self, version: int) -> str:
        """Push the weights as this policy version; the digest of the bytes sent ("" where the
        backend has none, and on all ranks but 0)."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the file. Plain values: it travels through msgpack."""

    name: str
    dtype: str
    shape: list[int]
    offset: int

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * getattr(torch, self.dtype).itemsize


def lay_out(metadata: Sequence[TensorMeta]) -> tuple[list[Slot], int]:
    """Aligned places for all tensors, and the size of the file in bytes."""
    slots: list[Slot] = []
    offset = 0
    for meta in metadata:
        slot = Slot(
            name=meta.name,
            dtype=str(meta.dtype).removeprefix("torch."),
            shape=list(meta.shape),
            offset=offset,
        )
        slots.append(slot)
        offset += -(-slot.num_bytes // ALIGNMENT) * ALIGNMENT
    return slots, max(offset, ALIGNMENT)


def views(buffer: mmap.mmap, slots: Sequence[Slot]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a mapped file, without a copy."""
    whole = torch.frombuffer(buffer, dtype=torch.uint8)
    for slot in slots:
        flat = whole[slot.offset : slot.offset + slot.num_bytes]
        yield slot.name, flat.view(getattr(torch, slot.dtype)).view(slot.shape)


def digest(buffer: mmap.mmap) -> str:
    with memoryview(buffer) as view:
        return blake3(view).hexdigest()


class SharedMemorySender:
    """The sending half of `shm`. All ranks iterate the source; rank 0 writes and talks."""

    def __init__(self, source: Source, client: Client, *, rank: int, directory: Path) -> None:
        self._source = source
        self._client = client
        self._slots, self._size = lay_out(source.metadata())
        self._buffer: mmap.mmap | None = None
        if rank == 0:
            self._buffer = self._handshake(directory)

    def _handshake(self, directory: Path) -> mmap.mmap:
        directory.mkdir(parents=True, exist_ok=True)
        fd, path = tempfile.mkstemp(prefix="cohort-weights-", dir=directory)
        try:
            # Reserve the blocks now: a full file system is an error here, not a SIGBUS later.
            os.posix_fallocate(fd, 0, self._size)
            buffer = mmap.mmap(fd, self._size)
            self._client.init_weight_transfer_engine(
                {"path": path, "size": self._size, "slots": [vars(slot) for slot in self._slots]}
            )
        except OSError as error:
            raise RuntimeError(
                f"cannot put {self._size / 2**20:.0f} MiB of weights into {directory}: {error}; "
                "make room there or set cluster.weight_directory"
            ) from error
        finally:
            os.unlink(path)
            os.close(fd)
        self._targets = dict(views(buffer, self._slots))
        return buffer

    def send(self, version: int) -> str:
        for slot, (name, tensor) in zip(self._slots, self._source, strict=True):
            if name != slot.name or list(tensor.shape) != slot.shape:
                raise RuntimeError(
                    f"a weight changed: {slot.name} {slot.shape} at the handshake, "
                    f"{name} {list(tensor.shape)} now"
                )
            if self._buffer is not None:
                self._targets[name].copy_(tensor)
        if self._buffer is None:
            return ""
        checksum = digest(self._buffer)
        self._client.start_weight_update()
        self._client.update_weights({"digest": checksum})
        self._client.finish_weight_update(str(version))
        return checksum

    def close(self) -> None:
        self._targets = {}
        if self._buffer is not None:
            with contextlib.suppress(BufferError):  # a view may still be alive; the exit frees it
                self._buffer.close()


class NativeSender:
    """vLLM's own trainer engines (`nccl`, `ipc`) behind the same two methods.

    They call `finish_weight_update` without a version; the client wrapper adds it.
    """

    def __init__(self, source: Source, client: Client, init_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        class Adapter(WeightSource):
            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(*meta) for meta in source.metadata()]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return iter(source)

        self._stamp = _Stamp(client)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=self._stamp, source=Adapter()
        )

    def send(self, version: int) -> str:
        self._stamp.version = str(version)
        self._engine.send_weights()
        return ""

    def close(self) -> None:
        self._engine.shutdown()


class _Stamp:
    """A client that names the version when the update ends."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.version = "0"
        self.init_weight_transfer_engine = client.init_weight_transfer_engine
        self.start_weight_update = client.start_weight_update
        self.update_weights = client.update_weights

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.finish_weight_update(weight_version or self.version)


@dataclass(frozen=True)
class Endpoint:
    """What `connect` needs to know of the other side."""

    backend: Backend
    directory: str = ""
    """For `shm`: a folder that learner rank 0 and all samplers share."""
    address: str = ""
    port: int = 0
    """For `nccl`: where rank 0 listens."""
    num_workers: int = 1
    """Sampler workers in all: replicas x tensor_parallel."""


def connect(endpoint: Endpoint, source: Source, client: Client, *, rank: int) -> Sender:
    """The sender for a backend: the one place where backend names meet constructor arguments."""
    if endpoint.backend == "shm":
        return SharedMemorySender(source, client, rank=rank, directory=Path(endpoint.directory))
    if endpoint.backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NativeSender(
            source,
            client,
            NCCLTrainerInitInfo(
                master_address=endpoint.address,
                master_port=endpoint.port,
                world_size=1 + endpoint.num_workers,
                rank=rank,
            ),
        )
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return NativeSender(source, client, IPCTrainerInitInfo(rank=rank))
