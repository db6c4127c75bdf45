"""Scorer: what a reward actor runs. A plain class; a REPL can use it as it is."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rewards.config import RewardConfig
from rewards.isolate import Child, ChildDied, ChildTimeout, Nursery
from rewards.packed import (
    PackedGroup,
    PackedVerdicts,
    Piece,
    Verdicts,
    pack_group,
    pack_verdict,
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
        [found] = self.judge([pack_group(task, attempts, self._rubric.needs)])
        return unpack_verdicts(found or [], len(attempts))

    def judge(self, groups: Sequence[PackedGroup]) -> list[PackedVerdicts | None]:
        """The same for several groups, which share a turn; None for those that are to be handed in
        again, each alone, since one of them takes long. Never None for a single group."""
        wanted = [group for group in groups if self._names and group["items"]]
        if len(wanted) > 1:
            judged = iter(self._quickly(wanted))
        else:
            judged = iter([self._patiently(group) for group in wanted])
        return [next(judged) if self._names and group["items"] else [] for group in groups]

    def _items(self, group: PackedGroup) -> list[int]:
        """The completions, and behind them one for each verifier of whole groups."""
        count = len(group["text"])
        return [*group["items"], *range(count, count + len(self._batch))]

    def _quickly(self, groups: Sequence[PackedGroup]) -> list[PackedVerdicts | None]:
        found: list[PackedVerdicts | None] = [None] * len(groups)
        with self._turns():
            child = self._idle.pop() if self._idle else Child(self._nursery)
            try:
                requests = [{**group, "items": self._items(group)} for group in groups]
                child.send(*requests)
                for at in range(len(requests)):
                    pieces: PackedVerdicts = []
                    while not (pieces and pieces[-1]["end"]):  # nothing stays in the pipe
                        pieces.append(child.receive(self._config.timeout / 5, request=at) or {})
                    found[at] = pieces
            except (ChildTimeout, ChildDied):
                child.kill()
            except BaseException:
                child.kill()
                raise
            else:
                self._idle.append(child)
        return found

    def _patiently(self, group: PackedGroup) -> PackedVerdicts:
        attempts = len(group["text"])
        found: PackedVerdicts = []
        items = self._items(group)
        with self._turns() as hand_on:
            child = self._idle.pop() if self._idle else Child(self._nursery)
            fresh = False
            try:
                while items:
                    try:
                        child.send({**group, "items": items})
                        patience, end = self._patience, False
                        while not end:  # nothing stays in the pipe
                            reply = child.receive(self._config.timeout, patience)
                            if reply is None:
                                hand_on()
                                patience = 0.0
                            else:
                                self._note(found, items, reply)
                                end = reply["end"]
                    except (ChildTimeout, ChildDied) as error:
                        child.kill()
                        child = Child(self._nursery)
                        if isinstance(error, ChildDied) and not (error.begun or fresh):
                            fresh = True  # it was dead before it was asked: nobody's fault
                            continue
                        # An item that is not waited for: it died between two of them.
                        if items:
                            item = error.item if error.item in items else items[0]
                            self._blame(found, item, error, attempts)
                            items.remove(item)
            except BaseException:
                child.kill()
                raise
            self._idle.append(child)
        return found

    @staticmethod
    def _note(found: PackedVerdicts, items: list[int], piece: Piece) -> None:
        found.append(piece)
        if piece["end"]:
            items.clear()
        elif "done" in piece:
            items.remove(piece["done"])
        else:
            del items[: len(piece["items"])]

    def _blame(self, found: PackedVerdicts, item: int, error: Exception, attempts: int) -> None:
        """The completion that was looked at; nobody where a verifier of whole groups was at work,
        since nothing says whose fault it is."""
        group = item >= attempts
        names = [n for n in self._names if n not in self._batch]
        if group:
            names = [self._batch[item - attempts]]
        verdict = failure(str(error))
        if isinstance(error, ChildTimeout):
            verdict = verdict.lasting(self._config.timeout)
            if not group:
                verdict = replace(verdict, outcome="timeout")
        more = [
            [number, name, pack_verdict(verdict)]
            for number in (range(attempts) if group else [item])
            for name in names
        ]
        found.append({"items": [], "plain": {}, "more": more})

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
