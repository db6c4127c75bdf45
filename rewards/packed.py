"""Groups and verdicts in columns: how they travel between the driver, a scorer and its child.

A verifier of ten microseconds must not wait for its envelope, so the groups of a call are one
parcel that nobody on the way opens: a scorer hands the driver's bytes to a child, and the child's
numbers to the driver. Nothing is pickled: JSON there, numbers and JSON back.

Completions of a parcel are numbered through; behind them, one number for each verifier of whole
groups and each group.
"""

import itertools
import json
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rewards.score import Attempt, Task, Verdict

Verdicts = dict[str, Verdict | None]
"""Of one completion, by verifier; None where one does not apply."""


class Columns(NamedTuple):
    """Completions, as a verifier may ask for them."""

    text: list[str]
    num_tokens: list[int]
    truncated: list[bool]
    token_ids: list[Sequence[int]]
    """Empty where no verifier wants them."""

    def attempt(self, number: int) -> Attempt:
        return Attempt(
            text=self.text[number],
            num_tokens=self.num_tokens[number],
            truncated=self.truncated[number],
            token_ids=self.token_ids[number] if self.token_ids else (),
        )

    def only(self, places: Sequence[int]) -> "Columns":
        """Those completions alone."""
        return Columns(
            [self.text[place] for place in places],
            [self.num_tokens[place] for place in places],
            [self.truncated[place] for place in places],
            [self.token_ids[place] for place in places] if self.token_ids else [],
        )

    def attempts(self) -> list[Attempt]:
        return [self.attempt(number) for number in range(len(self.text))]


def columns_of(attempts: Sequence[Attempt]) -> Columns:
    return Columns(
        [a.text for a in attempts],
        [a.num_tokens for a in attempts],
        [a.truncated for a in attempts],
        [a.token_ids for a in attempts] if any(a.token_ids for a in attempts) else [],
    )


class Parcel(NamedTuple):
    sizes: list[int]
    """Completions of each group"""
    wanted: list[list[int]]
    """Of each group, the places of those that are to be judged."""
    data: bytes
    """For the child alone: `unpack_groups`."""


class Piece(NamedTuple):
    """What is said of some completions of a parcel."""

    items: Sequence[int]
    names: Sequence[str]
    """Verifiers that judge one completion at a time"""
    numbers: bytes
    """float64: for each of `names`, a value and then the seconds of each of `items`."""
    more: bytes = b""
    """JSON, `[[completion, verifier, packed verdict], ...]`: whatever is more or less than a
    number; it stands in place of the number. Empty for none."""


class Judged(NamedTuple):
    pieces: list[Piece]
    """A later one is right where two speak of the same."""
    again: Sequence[int]
    """The groups of the parcel of which nothing is said: they are to be handed in again, each
    alone, since one of them takes long."""


def pack_groups(
    groups: Sequence[tuple[Task, Sequence[Attempt]]], needs: Callable[[Attempt], bool]
) -> Parcel:
    """`needs` says which completions any verifier has to look at."""
    wanted = [[n for n, attempt in enumerate(attempts) if needs(attempt)] for _, attempts in groups]
    sizes = [len(attempts) for _, attempts in groups]
    content = [_group(task, attempts) for task, attempts in groups]
    return Parcel(sizes, wanted, json.dumps(content).encode())


def _group(task: Task, attempts: Sequence[Attempt]) -> list[Any]:
    text, num_tokens, truncated, token_ids = columns_of(attempts)
    cut = [number for number, each in enumerate(truncated) if each]  # few, and read by few
    about = [task.answer, task.prompt, task.source, dict(task.extra)]
    return [*about, text, num_tokens, cut, token_ids]


def unpack_groups(data: bytes) -> list[tuple[Task, Columns]]:
    found = []
    for answer, prompt, source, extra, text, num_tokens, cut, token_ids in json.loads(data):
        truncated = [False] * len(text)
        for number in cut:
            truncated[number] = True
        task = Task(answer=answer, prompt=prompt, source=source, extra=extra)
        found.append((task, Columns(text, num_tokens, truncated, token_ids)))
    return found


def pack_verdict(verdict: Verdict | None) -> list[Any] | None:
    if verdict is None:
        return None
    parts = dict(verdict.parts)
    return [verdict.value, verdict.seconds, verdict.outcome, verdict.note, verdict.steps, parts]


def unpack_verdict(packed: Sequence[Any] | None) -> Verdict | None:
    if packed is None:
        return None
    value, seconds, outcome, note, steps, parts = packed
    steps = tuple((end, step) for end, step in steps)
    return Verdict(
        value=value, seconds=seconds, outcome=outcome, note=note, steps=steps, parts=parts
    )


def pack_more(more: Sequence[tuple[int, str, Verdict | None]]) -> bytes:
    return json.dumps([[i, name, pack_verdict(v)] for i, name, v in more]).encode() if more else b""


def unpack_verdicts(pieces: Sequence[Piece], count: int) -> list[Verdicts]:
    """One entry per completion of a parcel of `count`."""
    found: list[Verdicts] = [{} for _ in range(count)]
    nothing: dict[str, float] = {}  # one for all of them
    for piece in pieces:
        for name, values, seconds in _columns(piece):
            for item, value, spent in zip(piece.items, values, seconds, strict=True):
                found[item][name] = Verdict(value=value, seconds=spent, parts=nothing)
        for item, name, packed in json.loads(piece.more) if piece.more else ():
            found[item][name] = unpack_verdict(packed)
    return found


def seconds_of(verdicts: Sequence[Verdicts]) -> float:
    """How long the verifiers were at it."""
    return sum(v.seconds for each in verdicts for v in each.values() if v is not None)


def _columns(piece: Piece) -> Iterator[tuple[str, Sequence[float], Sequence[float]]]:
    """Per verifier: name, values, seconds."""
    count = len(piece.items)
    numbers = memoryview(piece.numbers).cast("d").tolist() if piece.numbers else []
    for at, name in enumerate(piece.names if numbers else ()):
        values = 2 * at * count
        yield name, numbers[values : values + count], numbers[values + count : values + 2 * count]


# -- between a scorer and its child ---------------------------------------------------------------

REQUEST = struct.Struct("=qI")
"""When it was sent, and of how many groups. They follow: how many items each has (int32), the items
(int32), and the packed groups."""
LENGTH = struct.Struct("=I")
REPLY = struct.Struct("=qiiI")
"""When its request was sent; whether it is the last to it; how many items; bytes of `numbers`.
`numbers` and `more` follow."""


def frame_request(sent: int, items: list[list[int]], data: bytes) -> bytes:
    counts = array("i", map(len, items))
    flat = array("i", itertools.chain.from_iterable(items))
    head = REQUEST.pack(sent, len(items))
    return framed(b"".join((head, counts.tobytes(), flat.tobytes(), data)))


def read_request(frame: bytes) -> tuple[int, list[list[int]], bytes]:
    """When it was sent, the items of each group, and the packed groups."""
    sent, groups = REQUEST.unpack_from(frame)
    at = REQUEST.size + 4 * groups
    counts = memoryview(frame)[REQUEST.size : at].cast("i").tolist()
    end = at + 4 * sum(counts)
    numbers = iter(memoryview(frame)[at:end].cast("i").tolist())
    return sent, [list(itertools.islice(numbers, count)) for count in counts], frame[end:]


class Reply(NamedTuple):
    """What a child says of the next items of a request."""

    sent: int
    end: bool
    count: int
    numbers: bytes
    more: bytes

    def frame(self) -> bytes:
        head = REPLY.pack(self.sent, self.end, self.count, len(self.numbers))
        return framed(b"".join((head, self.numbers, self.more)))


def read_reply(frame: bytes) -> Reply:
    """Raises ValueError where it is none."""
    try:
        sent, end, count, size = REPLY.unpack_from(frame)
    except struct.error as error:
        raise ValueError(str(error)) from error
    numbers = REPLY.size + size
    if len(frame) < numbers:
        raise ValueError(f"{size} bytes do not fit in {len(frame)}")
    return Reply(sent, bool(end), count, frame[REPLY.size : numbers], frame[numbers:])


def framed(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


class Frames:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> None:
        self._unread += data

    def take(self) -> bytes | None:
        """The next, if all of it is there."""
        if len(self._unread) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._unread)[0]
        if len(self._unread) < end:
            return None
        frame = bytes(self._unread[LENGTH.size : end])
        del self._unread[:end]
        return frame
