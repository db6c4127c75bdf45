"""Groups and verdicts in columns of plain values: how they travel between processes.

Cheap on Ray's wire, and JSON on a child's pipe, whose replies are never unpickled. A verifier of
ten microseconds must not wait for its envelope.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.score import Attempt, Task, Verdict

Verdicts = dict[str, Verdict | None]
"""Of one completion, by verifier; None where one does not apply."""
PackedGroup = dict[str, Any]
"""`task`, the columns `text`, `num_tokens`, `truncated` and `token_ids` of its completions, and
`items`: the numbers of those that are to be judged."""
Piece = dict[str, Any]
"""What is said of some `items`: `plain`, by verifier, their values and seconds, in order; and
`more`, `[item, verifier, packed verdict]` for whatever is more or less than a number."""
PackedVerdicts = list[Piece]
"""Of one group; a later piece is right where two speak of the same."""


def pack_group(
    task: Task, attempts: Sequence[Attempt], needs: Callable[[Attempt], bool]
) -> PackedGroup:
    """`needs` says which completions any verifier has to look at."""
    return {
        "task": {
            "answer": task.answer,
            "prompt": task.prompt,
            "source": task.source,
            "extra": dict(task.extra),
        },
        "text": [a.text for a in attempts],
        "num_tokens": [a.num_tokens for a in attempts],
        "truncated": [a.truncated for a in attempts],
        "token_ids": [a.token_ids for a in attempts] if any(a.token_ids for a in attempts) else [],
        "items": [number for number, attempt in enumerate(attempts) if needs(attempt)],
    }


def unpack_group(packed: Mapping[str, Any]) -> tuple[Task, list[Attempt]]:
    columns = packed["text"], packed["num_tokens"], packed["truncated"]
    token_ids = packed["token_ids"] or [()] * len(packed["text"])
    attempts = [
        Attempt(text=text, num_tokens=count, truncated=truncated, token_ids=ids)
        for text, count, truncated, ids in zip(*columns, token_ids, strict=True)
    ]
    return Task(**packed["task"]), attempts


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


def unpack_verdicts(pieces: PackedVerdicts, count: int) -> list[Verdicts]:
    """One entry per completion of a group of `count`."""
    found: list[Verdicts] = [{} for _ in range(count)]
    for piece in pieces:
        for name, (values, seconds) in piece["plain"].items():
            for item, value, spent in zip(piece["items"], values, seconds, strict=True):
                found[item][name] = Verdict(value=value, seconds=spent)
        for item, name, packed in piece["more"]:
            found[item][name] = unpack_verdict(packed)
    return found


def seconds_of(pieces: PackedVerdicts) -> float:
    """How long the verifiers were at it."""
    plain = sum(sum(seconds) for piece in pieces for _, seconds in piece["plain"].values())
    return plain + sum(packed[1] for piece in pieces for *_, packed in piece["more"] if packed)
