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
from collections.abc import Iterable, Iterator, Sequence
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

    frozen: int
    """The first so many tensors never change: where samplers hold them, `changing` is enough."""
    scales: dict[str, float]
    """By the name of a weight [out, in] that has an adapter: the factor f of f B A, which whoever
    receives them adds. A [r, in] and B [out, r] are tensors too (`adapter_name`), not frozen."""

    def metadata(self) -> Sequence[TensorMeta]: ...
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def changing(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors behind those that are frozen."""
        ...


def adapter_name(weight: str, half: Literal["A", "B"]) -> str:
    return f"{weight}.lora_{half}"


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


def digest(buffer: mmap.mmap, start: int = 0, frozen: str = "") -> str:
    """Of what lies behind `start`, and of what is before it by its own digest, `frozen`."""
    found = blake3(frozen.encode())
    with memoryview(buffer) as view:
        found.update(view[start:])
    return found.hexdigest()


def fill(
    targets: dict[str, torch.Tensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    slots: Sequence[Slot],
) -> None:
    """Copy every tensor to its place; ranks without places only take part. Raises RuntimeError when
    a tensor is not what was announced."""
    for slot, (name, tensor) in zip(slots, tensors, strict=True):
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


class Written:
    """A source's weights in a buffer of rank 0's; what never changes is written once. All ranks
    iterate the source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.slots, self.size = lay_out(source.metadata())
        self._changing = self.slots[source.frozen :]
        self.start = self._changing[0].offset if source.frozen else 0
        """Of the bytes that may change."""
        self.announcement = {
            "size": self.size,
            "slots": [vars(slot) for slot in self.slots],
            "frozen": source.frozen,
            "scales": source.scales,
        }
        """For the samplers, at the handshake."""
        self.written = 1.0
        """Bytes that were written last / bytes of all."""
        self._has_frozen = False  # on all ranks alike
        self._frozen = ""
        """Digest of what never changes."""

    def write(self, buffer: mmap.mmap | None) -> str:
        """The weights of now, into the buffer, where this rank has one; their digest."""
        if self._has_frozen:
            tensors, slots = self._source.changing(), self._changing
            self.written = 1 - self.start / self.size
        else:
            tensors, slots = iter(self._source), self.slots
        fill({} if buffer is None else dict(views(buffer, self.slots)), tensors, slots)
        if self._source.frozen and not self._has_frozen:
            self._has_frozen = True
            if buffer is not None:
                with memoryview(buffer) as view:
                    self._frozen = blake3(view[: self.start]).hexdigest()
        return "" if buffer is None else digest(buffer, self.start, self._frozen)


class SharedMemorySender:
    """The sending half of `shm`. All ranks iterate the source; rank 0 writes and talks."""

    def __init__(self, source: Source, client: Client, *, rank: int, directory: Path) -> None:
        self.sent = 1.0
        self._client = client
        self._weights = Written(source)
        self._buffer: mmap.mmap | None = None
        if rank == 0:
            self._buffer = self._handshake(directory)

    def _handshake(self, directory: Path) -> mmap.mmap:
        size = self._weights.size
        directory.mkdir(parents=True, exist_ok=True)
        remove_weights(directory)  # of a rank that was killed in the lines below
        fd, path = tempfile.mkstemp(prefix=WEIGHTS, dir=directory)
        try:
            lock(fd)
            # Reserve the blocks now: a full file system is an error here, not a SIGBUS later.
            os.posix_fallocate(fd, 0, size)
            buffer = mmap.mmap(fd, size)
            self._client.init_weight_transfer_engine({"path": path, **self._weights.announcement})
        except OSError as error:
            raise RuntimeError(
                f"cannot put {size / 2**20:.0f} MiB of weights into {directory}: {error}; "
                "make room there or set cluster.weight_directory"
            ) from error
        finally:
            os.unlink(path)
            os.close(fd)
        return buffer

    def stage(self) -> str:
        """Write the weights into the file; the samplers load them beside those that serve."""
        checksum = self._weights.write(self._buffer)
        if self._buffer is not None:
            self._client.stage_weights({"digest": checksum})
            self.sent = self._weights.written
        return checksum

    def close(self) -> None:
        if self._buffer is not None:
            with contextlib.suppress(BufferError):  # a view may still be alive; the exit frees it
                self._buffer.close()


class PayloadSender:
    """The sending half of `ray`. All ranks iterate the source; rank 0 keeps what the samplers hold
    beside what they are to hold, and sends the difference where that is less. Where a part never
    changes, it sends the other part, whole."""

    def __init__(self, source: Source, client: Client, *, rank: int) -> None:
        self.sent = 1.0
        self._client = client
        self._weights = Written(source)
        self._next = mmap.mmap(-1, self._weights.size) if rank == 0 else None
        self._held: mmap.mmap | None = None
        if rank == 0 and not self._weights.start:
            self._held = mmap.mmap(-1, self._weights.size)
        self._base = ""
        """Digest of what the samplers were sent; empty where that is not known."""
        if rank == 0:
            client.init_weight_transfer_engine(self._weights.announcement)

    def stage(self) -> str:
        """Gather the weights, and send what differs from those that the samplers hold."""
        checksum = self._weights.write(self._next)
        if self._next is not None:
            base, self._base = self._base, ""  # until they have it: else they get everything next
            payload, update = self._payload(self._next, base)
            self.sent = len(payload) / self._weights.size
            pieces = [bytes(payload[at : at + PIECE]) for at in range(0, len(payload), PIECE)]
            self._client.stage_weights({**update, "digest": checksum, "pieces": pieces})
            self._base = checksum
            if self._held is not None:
                self._held, self._next = self._next, self._held
        return checksum

    def _payload(self, buffer: mmap.mmap, base: str) -> tuple[memoryview, dict[str, Any]]:
        """What to send, and what it is."""
        start = self._weights.start
        if base and self._held is None:
            return memoryview(buffer)[start:], {"base": base, "start": start}
        if base and self._held is not None:
            slots = self._weights.slots
            difference = encode(bits(self._held, slots), bits(buffer, slots))
            if difference is not None:
                return memoryview(difference), {"base": base}
        return memoryview(buffer), {}

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
