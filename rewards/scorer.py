"""Scorer: what a reward actor runs. A plain class; a REPL can use it as it is."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from rewards.child import unpack
from rewards.config import RewardConfig
from rewards.isolate import Child, ChildDied, ChildTimeout, Nursery
from rewards.score import Attempt, Rubric, Score, Task, Verdict, failure
from rewards.verifiers import SERVICES, load

Verdicts = dict[str, Verdict | None]
"""Of one completion, by verifier."""

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
    hangs keeps nobody waiting. Methods may be called from up to `LANES` threads.
    """

    def __init__(self, config: RewardConfig, max_tokens: int = 0) -> None:
        self._config = config
        self._rubric = rubric_of(config, max_tokens)
        settings = settings_of(config)
        loaded = [load(**verifier) for verifier in settings["verifiers"]]
        self._batch = [v.name for v in loaded if v.form.batch]
        self._wants_tokens = any(v.form.wants_tokens for v in loaded)
        self._names = [v.name for v in loaded]
        self._patience = max(config.timeout / 50, 0.02)
        self._turn = threading.Semaphore(TURNS)
        self._nursery = Nursery(settings)
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
        found: list[Verdicts] = [{} for _ in attempts]
        wanted = [i for i, attempt in enumerate(attempts) if self._rubric.needs(attempt)]
        groups = [len(attempts) + at for at in range(len(self._batch))]
        items = [*wanted, *(groups if wanted else [])]
        request = {
            "task": asdict(task),
            "attempts": [
                [a.text, a.num_tokens, a.truncated, list(a.token_ids) if self._wants_tokens else []]
                for a in attempts
            ],
        }
        if not self._names:
            return found
        with self._turns() as hand_on:
            child = self._idle.pop() if self._idle else Child(self._nursery)
            fresh = False
            try:
                while items:
                    try:
                        child.send({**request, "items": items})
                        reply: dict[str, Any] | None = None
                        while reply is None or not reply["end"]:  # nothing stays in the pipe
                            reply = child.receive(self._config.timeout, self._patience)
                            if reply is None:
                                hand_on()
                            else:
                                self._note(found, items, reply)
                    except (ChildTimeout, ChildDied) as error:
                        child.kill()
                        child = Child(self._nursery)
                        if isinstance(error, ChildDied) and not (error.begun or fresh):
                            fresh = True  # it was dead before it was asked: nobody's fault
                            continue
                        # An item that is not waited for: it died between two of them.
                        if items:
                            item = error.item if error.item in items else items[0]
                            self._blame(found, item, error, len(attempts))
                            items.remove(item)
            except BaseException:
                child.kill()
                raise
            self._idle.append(child)
        return found

    @staticmethod
    def _note(found: list[Verdicts], items: list[int], reply: dict[str, Any]) -> None:
        for number, verdicts in reply["items"]:
            found[number] |= {name: unpack(packed) for name, packed in verdicts.items()}
            if number in items and "done" not in reply:
                items.remove(number)
        if "done" in reply:
            items.remove(reply["done"])
        if reply["end"]:
            items.clear()

    def _blame(self, found: list[Verdicts], item: int, error: Exception, attempts: int) -> None:
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
        for number in range(attempts) if group else [item]:
            found[number] |= dict.fromkeys(names, verdict)

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
