"""Weights from learner to samplers: the sending half, and the layout both halves agree on.

The learner imports this file, so it does not import vLLM (four seconds and half a gigabyte per
rank); the receiving half is `rollout/receive.py`.

The `shm` backend: rank 0 writes every tensor into one memory-mapped file, each sampler maps the
same file and loads from it. The file's name lives only for the length of the handshake: it is
unlinked as soon as every sampler holds its mapping, so nothing is left behind whatever dies later.

The `ray` backend: rank 0 hands the samplers the bytes, over whatever the client travels on, and
where few weights changed only their difference (`rollout/delta.py`). No folder has to be shared.
"""

import contextlib
import mmap
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from blake3 import blake3

from rollout.delta import encode
from rollout.leftovers import WEIGHTS, lock, remove_weights

Backend = Literal["shm", "ray", "gloo", "nccl", "ipc"]
STAGED = ("shm", "ray")
"""Backends whose samplers have the bytes before an update begins: the learner takes no part in it,
and each sampler begins when it is ready."""

ALIGNMENT = 64
PIECE = 1 << 30
"""Bytes that travel as one object: messages to an engine's own process have a limit of 4 GiB."""


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
    """The control plane towards all samplers. Every call reaches every one of them and returns when
    all have answered."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def stage_weights(self, update_info: dict[str, Any]) -> None:
        """What the samplers are to switch to, by its digest. Returns when every sampler has it;
        they make it ready while they decode."""
        ...


class NativeClient(Client, Protocol):
    """The structure of vLLM's VLLMWeightSyncClient, and what it lacks."""

    def expect_weights(self, info: dict[str, Any]) -> None:
        """What they will be sent (`slots`). Raises RuntimeError when their model differs."""
        ...

    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """The sending half of a backend. All of it is called on every learner rank."""

    sent: float
    """Of the last push: bytes that travelled / bytes of the weights. On rank 0."""

    def stage(self) -> str:
        """Get ready what can be, here and in the samplers, while these go on decoding. The digest
        of the bytes that they have now and serve once they `switch` ("" where the backend has none,
        and on all ranks but 0)."""
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
    with warnings.catch_warnings():  # a sampler only reads
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        whole = torch.frombuffer(buffer, dtype=torch.uint8)
    for slot in slots:
        flat = whole[slot.offset : slot.offset + slot.num_bytes]
        yield slot.name, flat.view(getattr(torch, slot.dtype)).view(slot.shape)


def digest(buffer: mmap.mmap) -> str:
    with memoryview(buffer) as view:
        return blake3(view).hexdigest()


def fill(targets: dict[str, torch.Tensor], source: Source, slots: Sequence[Slot]) -> None:
    """Copy every tensor of the source to its place; ranks without places only take part. Raises
    RuntimeError when a tensor is not what was announced."""
    for slot, (name, tensor) in zip(slots, source, strict=True):
        if name != slot.name or list(tensor.shape) != slot.shape:
            raise RuntimeError(
                f"a weight changed: {slot.name} {slot.shape} at the handshake, "
                f"{name} {list(tensor.shape)} now"
            )
        if targets:
            targets[name].copy_(tensor)


def bits(buffer: mmap.mmap, slots: Sequence[Slot]) -> np.ndarray:
    """A buffer of weights as unsigned integers of the narrowest weight's width."""
    width = min(4, *(getattr(torch, slot.dtype).itemsize for slot in slots))
    return np.frombuffer(buffer, dtype=f"u{width}")


class SharedMemorySender:
    """The sending half of `shm`. All ranks iterate the source; rank 0 writes and talks."""

    def __init__(self, source: Source, client: Client, *, rank: int, directory: Path) -> None:
        self.sent = 1.0
        self._source, self._client = source, client
        self._slots, self._size = lay_out(source.metadata())
        self._buffer: mmap.mmap | None = None
        self._targets: dict[str, torch.Tensor] = {}
        if rank == 0:
            self._buffer = self._handshake(directory)

    def _handshake(self, directory: Path) -> mmap.mmap:
        directory.mkdir(parents=True, exist_ok=True)
        remove_weights(directory)  # of a rank that was killed in the lines below
        fd, path = tempfile.mkstemp(prefix=WEIGHTS, dir=directory)
        try:
            lock(fd)
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

    def stage(self) -> str:
        """Write the weights into the file; the samplers load them beside those that serve."""
        fill(self._targets, self._source, self._slots)
        if self._buffer is None:
            return ""
        checksum = digest(self._buffer)
        self._client.stage_weights({"digest": checksum})
        return checksum

    def close(self) -> None:
        self._targets = {}
        if self._buffer is not None:
            with contextlib.suppress(BufferError):  # a view may still be alive; the exit frees it
                self._buffer.close()


class PayloadSender:
    """The sending half of `ray`. All ranks iterate the source; rank 0 keeps what the samplers hold
    beside what they are to hold, and sends the difference where that is less."""

    def __init__(self, source: Source, client: Client, *, rank: int) -> None:
        self.sent = 1.0
        self._source, self._client = source, client
        self._slots, self._size = lay_out(source.metadata())
        self._first = rank == 0
        self._held, self._next = (mmap.mmap(-1, self._size if self._first else 1) for _ in "ab")
        self._base = ""
        """Digest of what the samplers were sent and `_held` holds; empty where that is not
        known."""
        if self._first:
            slots = [vars(slot) for slot in self._slots]
            client.init_weight_transfer_engine({"size": self._size, "slots": slots})

    def stage(self) -> str:
        """Gather the weights, and send what differs from those that the samplers hold."""
        targets = dict(views(self._next, self._slots)) if self._first else {}
        fill(targets, self._source, self._slots)
        return self._handed() if self._first else ""

    def _handed(self) -> str:
        difference = None
        base, self._base = self._base, ""  # until they have it: else they get everything next
        if base:
            difference = encode(bits(self._held, self._slots), bits(self._next, self._slots))
        payload = memoryview(self._next) if difference is None else memoryview(difference)
        self.sent = len(payload) / len(self._next)
        pieces = [bytes(payload[at : at + PIECE]) for at in range(0, len(payload), PIECE)]
        checksum = digest(self._next)
        update = {"digest": checksum, "base": "" if difference is None else base, "pieces": pieces}
        self._client.stage_weights(update)
        self._base = checksum
        self._held, self._next = self._next, self._held
        return checksum

    def close(self) -> None:
        """Nothing: its memory is its own."""


class NativeSender:
    """vLLM's own trainer engines (`nccl`, `ipc`, and `gloo` in their shape), which need paused
    samplers and take part in the update themselves.

    They call `finish_weight_update` without a version; the client wrapper adds it.
    """

    def __init__(self, source: Source, client: NativeClient, init_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        class Adapter(WeightSource):
            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(*meta) for meta in source.metadata()]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return iter(source)

        if init_info.is_sender:
            slots, _ = lay_out(source.metadata())
            client.expect_weights({"slots": [vars(slot) for slot in slots]})
        self.sent = 1.0
        self._stamp = _Stamp(client)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=self._stamp, source=Adapter()
        )

    def stage(self) -> str:
        """Nothing: the samplers' GPUs receive into the weights they serve with."""
        return ""

    def send(self, version: int) -> None:
        """Have all samplers, which are paused, serve the weights of now as this version."""
        self._stamp.version = str(version)
        self._engine.send_weights()

    def close(self) -> None:
        self._engine.shutdown()


class _Stamp:
    """A client that names the version when the update ends."""

    def __init__(self, client: NativeClient) -> None:
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
    """For `nccl` (and the address, for `gloo`): where rank 0 listens."""
    num_workers: int = 1
    """Sampler workers in all: replicas x tensor_parallel."""
    seconds: float = 600.0
    """For `gloo`: how long one broadcast may take."""


def connect(endpoint: Endpoint, source: Source, client: NativeClient, *, rank: int) -> Sender:
    """The sender for a backend: the one place where backend names meet constructor arguments."""
    if endpoint.backend == "shm":
        return SharedMemorySender(source, client, rank=rank, directory=Path(endpoint.directory))
    if endpoint.backend == "ray":
        return PayloadSender(source, client, rank=rank)
    if endpoint.backend == "gloo":
        from rollout.broadcast import BroadcastTrainerInit

        return NativeSender(
            source,
            client,
            BroadcastTrainerInit(
                address=endpoint.address,
                world_size=1 + endpoint.num_workers,
                seconds=endpoint.seconds,
                rank=rank,
            ),
        )
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
