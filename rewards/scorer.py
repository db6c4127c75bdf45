"""Scorer: what a reward actor runs. A plain class; a REPL can use it as it is."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rewards.config import RewardConfig
from rewards.isolate import Child, ChildDied, ChildTimeout, Nursery
from rewards.packed import (
    Judged,
    Parcel,
    Piece,
    Reply,
    Verdicts,
    pack_groups,
    pack_more,
    unpack_verdicts,
)
from rewards.score import Attempt, Rubric, Score, Task, failure
from rewards.verifiers import SERVICES

TURNS = 2
"""Groups that are scored at the same time: while one is read and written, the other is at work."""
LANES = 8
"""Groups that one scorer has under way at most: those, and those whose turn was handed on."""


def settings_of(config: RewardConfig) -> dict[str, Any]:
    """What a nursery needs to know."""
    verifiers = []
    for name, verifier in config.verifiers.items():
        use, options = verifier.use or name, dict(verifier.options)
        if use in SERVICES:
            continue
        if use == "code":
            options.setdefault("allow_unsandboxed", config.allow_unsandboxed_code)
        verifiers.append({"label": name, "use": use, "options": options})
    return {"verifiers": verifiers, "memory_gib": config.memory_gib}


def rubric_of(config: RewardConfig, max_tokens: int = 0) -> Rubric:
    """`max_tokens` is the longest completion that the sampler may give; only the overlong penalty
    asks."""
    return Rubric(
        weights=config.weights,
        truncated=config.truncated,
        overlong=(max_tokens, config.overlong_buffer, config.overlong_penalty),
    )


class Scorer:
    """Scores groups in children that are replaced when they hang or die; the verdicts on siblings
    do not depend on it.

    Two groups at a time; when a completion takes long, another group has its turn, so that one that
    hangs keeps nobody waiting, but for groups that were handed in together: those come back within
    a fifth of the timeout, to be handed in again, alone. Methods may be called from up to `LANES`
    threads.
    """

    def __init__(self, config: RewardConfig, max_tokens: int = 0) -> None:
        self._config = config
        self._rubric = rubric_of(config, max_tokens)
        self._patience = max(config.timeout / 50, 0.02)
        self._turn = threading.Semaphore(TURNS)
        self._nursery = Nursery(settings_of(config))
        self._names = [name for name, _ in self._nursery.verifiers]
        self._batch = [name for name, batch in self._nursery.verifiers if batch]
        self._single = [name for name, batch in self._nursery.verifiers if not batch]
        self._idle: list[Child] = []
        if self._names:
            self._idle.append(Child(self._nursery))

    def score(self, task: Task, attempts: Sequence[Attempt]) -> list[Score]:
        """One Score per attempt, in order."""
        verdicts = self.verdicts(task, attempts)
        return [self._rubric.score(a, v) for a, v in zip(attempts, verdicts, strict=True)]

    def verdicts(self, task: Task, attempts: Sequence[Attempt]) -> list[Verdicts]:
        """What each verifier says of each attempt. One whose scoring outlasts the timeout gets
        `timeout` from all of them; one whose scoring kills the child is `unscorable`."""
        judged = self.judge(pack_groups([(task, attempts)], self._rubric.needs))
        return unpack_verdicts(judged.pieces, len(attempts))

    def judge(self, parcel: Parcel) -> Judged:
        """The same for several groups, which share a turn. None is to be handed in again where
        there is one alone."""
        items = self._items(parcel) if self._names else []
        groups = sum(1 for group in items if group)
        if groups > 1:
            return self._quickly(parcel, items)
        return Judged(self._patiently(parcel, items) if groups else [], ())

    def _items(self, parcel: Parcel) -> list[list[int]]:
        """Of each group, what a child is asked about."""
        found: list[list[int]] = []
        start, whole = 0, sum(parcel.sizes)
        for size, wanted in zip(parcel.sizes, parcel.wanted, strict=True):
            behind = range(whole, whole + len(self._batch)) if wanted else ()
            found.append([*(start + place for place in wanted), *behind])
            start, whole = start + size, whole + len(self._batch)
        return found

    def _quickly(self, parcel: Parcel, items: list[list[int]]) -> Judged:
        pieces: list[Piece] = []
        left = [item for group in items for item in group]
        with self._turns():
            child = self._idle.pop() if self._idle else Child(self._nursery)
            try:
                child.send(items, parcel.data)
                while reply := child.receive(self._config.timeout / 5):
                    self._note(pieces, left, reply)
                    if reply.end:  # nothing stays in the pipe
                        break
            except (ChildTimeout, ChildDied):
                child.kill()
            except BaseException:
                child.kill()
                raise
            else:
                self._idle.append(child)
        missing = frozenset(left)
        return Judged(pieces, [n for n, group in enumerate(items) if not missing.isdisjoint(group)])

    def _patiently(self, parcel: Parcel, items: list[list[int]]) -> list[Piece]:
        [left] = filter(None, items)
        pieces: list[Piece] = []
        with self._turns() as hand_on:
            child = self._idle.pop() if self._idle else Child(self._nursery)
            fresh = False
            try:
                while left:
                    try:
                        child.send([left if group else [] for group in items], parcel.data)
                        patience, end = self._patience, False
                        while not end:  # nothing stays in the pipe
                            reply = child.receive(self._config.timeout, patience)
                            if reply is None:
                                hand_on()
                                patience = 0.0
                            else:
                                self._note(pieces, left, reply)
                                end = reply.end
                    except (ChildTimeout, ChildDied) as error:
                        child.kill()
                        child = Child(self._nursery)
                        if isinstance(error, ChildDied) and not (error.begun or fresh):
                            fresh = True  # it was dead before it was asked: nobody's fault
                            continue
                        # An item that is not waited for: it died between two of them.
                        if left:
                            item = error.item if error.item in left else left[0]
                            self._blame(pieces, item, error, parcel)
                            left.remove(item)
            except BaseException:
                child.kill()
                raise
            self._idle.append(child)
        return pieces

    def _note(self, pieces: list[Piece], left: list[int], reply: Reply) -> None:
        """It speaks of the next of those that are `left`. Raises ChildDied where it cannot."""
        items = left[: reply.count]
        if len(reply.numbers) not in (0, 16 * len(items) * len(self._single)):
            raise ChildDied("the scoring child's reply is of another length", -1, True)
        del left[: reply.count]
        pieces.append(Piece(items, self._single, reply.numbers, reply.more))
        if reply.end:
            left.clear()

    def _blame(self, pieces: list[Piece], item: int, error: Exception, parcel: Parcel) -> None:
        """The completion that was looked at; nobody where a verifier of whole groups was at work,
        since nothing says whose fault it is."""
        completions = sum(parcel.sizes)
        verdict = failure(str(error))
        if isinstance(error, ChildTimeout):
            verdict = verdict.lasting(self._config.timeout)
        if item < completions:
            names, blamed = self._single, [item]
            if isinstance(error, ChildTimeout):
                verdict = replace(verdict, outcome="timeout")
        else:
            group, verifier = divmod(item - completions, len(self._batch))
            start = sum(parcel.sizes[:group])
            names, blamed = [self._batch[verifier]], range(start, start + parcel.sizes[group])
        more = [(number, name, verdict) for number in blamed for name in names]
        pieces.append(Piece((), (), b"", pack_more(more)))

    @contextlib.contextmanager
    def _turns(self) -> Iterator[Any]:
        """Wait for a turn. It is handed on by the function that this gives, or at the end."""
        self._turn.acquire()
        mine = [True]

        def hand_on() -> None:
            if mine:
                mine.clear()
                self._turn.release()

        try:
            yield hand_on
        finally:
            hand_on()

    def close(self) -> None:
        for child in self._idle:
            child.kill()
        self._nursery.close()
