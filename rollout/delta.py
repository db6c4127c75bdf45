"""Lossless differences between two versions of the same weights.

A step of Adam at a low learning rate moves few bfloat16 weights across a rounding boundary, and
those mostly to a neighbour. So: where (gaps between changed weights, a byte each) and by how much
(the difference of the bit patterns as integers, a byte each), both compressed. Integers wrap, so
any two bit patterns have a difference and nothing is ever rounded.
"""

import struct

import numpy as np
import pyarrow as pa

HEADER = struct.Struct("=QQQQ")
"""Bytes of the weights, weights changed, bytes of the gaps before and after compression."""
FAR = 255
"""In the gaps: that many unchanged weights, and no changed one behind them. In the steps: the
difference is too large for a byte and follows in full."""
LEVEL = 1


def encode(old: np.ndarray, new: np.ndarray, *, densest: float = 0.2) -> bytes | None:
    """What `apply` needs to make `new` of `old` (unsigned integers of one type, the bit patterns of
    the weights). None where more than `densest` of them changed: then a difference saves nothing.
    Raises ValueError for weights of more than 4 bytes.

    >>> old = np.arange(6, dtype=np.uint16)
    >>> new = old.copy(); new[2] += 1; new[5] = 0
    >>> step = encode(old, new, densest=0.5); apply(old, step); old.tolist() == new.tolist()
    True
    """
    if old.itemsize > 4:
        raise ValueError(f"weights of {old.itemsize} bytes have no differences here, 4 is the most")
    differs = old != new
    if np.count_nonzero(differs) > densest * len(old):
        return None
    changed = np.flatnonzero(differs)
    signed = np.dtype(f"i{old.itemsize}")
    steps = (new[changed] - old[changed]).view(signed).astype(np.int64)
    zigzag = np.where(steps >= 0, 2 * steps, -2 * steps - 1)
    small = np.minimum(zigzag, FAR).astype(np.uint8)
    large = steps[zigzag >= FAR].astype(signed)
    codec = pa.Codec("zstd", compression_level=LEVEL)
    gaps = _gaps(changed)
    amounts = small.tobytes() + large.tobytes()
    squeezed = codec.compress(gaps, asbytes=True)
    header = HEADER.pack(new.nbytes, len(changed), len(gaps), len(squeezed))
    return header + squeezed + codec.compress(amounts, asbytes=True)


def _gaps(changed: np.ndarray) -> bytes:
    """Unchanged weights before each changed one, FAR at a time where there are more."""
    before = np.diff(changed, prepend=-1) - 1
    far, rest = before // FAR, (before % FAR).astype(np.uint8)
    if not far.any():
        return rest.tobytes()
    ends = np.cumsum(far + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, FAR, dtype=np.uint8)
    gaps[ends] = rest
    return gaps.tobytes()


def apply(weights: np.ndarray, difference: bytes) -> None:
    """Make the new weights of the old ones, in place. Raises ValueError for a difference that is
    not of weights of this size."""
    size, count, num_gaps, squeezed = HEADER.unpack_from(difference)
    if size != weights.nbytes:
        raise ValueError(f"a difference of {size} bytes of weights does not fit {weights.nbytes}")
    body = memoryview(difference)[HEADER.size :]
    codec = pa.Codec("zstd")
    gaps = np.frombuffer(codec.decompress(body[:squeezed], num_gaps, asbytes=True), dtype=np.uint8)
    signed = np.dtype(f"i{weights.itemsize}")
    small, large = _amounts(codec, bytes(body[squeezed:]), count, signed)
    steps = np.where(small % 2 == 0, small // 2, -(small // 2) - 1)
    steps[small == FAR] = large
    places = np.cumsum(gaps.astype(np.int64) + (gaps != FAR)) - 1
    weights[places[gaps != FAR]] += steps.astype(signed).view(weights.dtype)


def _amounts(
    codec: pa.Codec, squeezed: bytes, count: int, signed: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """(a byte for each change, the differences too large for one)."""
    with pa.CompressedInputStream(pa.BufferReader(squeezed), codec.name) as stream:
        amounts = stream.read()
    small = np.frombuffer(amounts[:count], dtype=np.uint8).astype(np.int64)
    return small, np.frombuffer(amounts[count:], dtype=signed).astype(np.int64)
