"""The verdict on one completion, and the rubric that makes it.

Invariant of this file: our failure is never the model's. A verifier that raises or returns
something that is no finite number gives `reward=None`, which leaves the completion out of the
baseline and the loss and is counted; only the completion's own doing is worth an honest 0.
"""

import importlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from rewards import answers, formats

Verifier = Callable[[str, str], "float | Sequence[tuple[int, float]]"]
"""`(completion, answer) -> value`: a plain function that can be called in a REPL. One that judges
steps returns `[(end, value), ...]`, `end` the number of characters up to the end of the step; its
part of the reward is the mean."""

BUILT_IN: dict[str, Verifier] = {
    "number": answers.number,
    "number_in_answer": answers.number_in_answer,
    "exact": answers.exact,
    "exact_in_answer": answers.exact_in_answer,
    "think_answer": formats.think_answer,
    "think_number": formats.think_number,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """All that a verifier may know of a completion."""

    text: str
    num_tokens: int
    truncated: bool
    """It was cut at the length limit: it did not end by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    reward: float | None
    """The weighted sum of `parts`; None when the verifier failed (`note` says how)."""
    parts: Mapping[str, float]
    """Each verifier's own value, unweighted; `timeout` is 1 on a completion that took too long."""
    note: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    """(characters up to the end of a step, its weighted value), in order; where verifiers judged
    steps, what the others gave is one more, at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Weighted verifiers.

    >>> rubric = Rubric(weights={"number": 1.0, "think_answer": 0.2})
    >>> rubric.score("42", Attempt(text="it is 42", num_tokens=4, truncated=False))
    Score(reward=1.0, parts={'number': 1.0, 'think_answer': 0.0}, note='', steps=())
    """

    weights: Mapping[str, float]
    truncated: Literal["score", "zero"] = "score"
    overlong: tuple[int, int, float] = (0, 0, 0.0)
    """(longest completion, buffer, penalty): see `overlong_penalty`."""

    def score(self, answer: str, attempt: Attempt) -> Score:
        parts: dict[str, float] = {}
        steps: list[tuple[int, float]] = []
        stepwise: set[str] = set()
        for name in self.weights:
            if attempt.truncated and self.truncated == "zero":
                parts[name] = 0.0
                continue
            try:
                found = find_verifier(name)(attempt.text, answer)
                if isinstance(found, Sequence) and not isinstance(found, str | bytes):
                    judged = [(int(end), float(step)) for end, step in found]
                    value = statistics.fmean(step for _, step in judged) if judged else 0.0
                    stepwise.add(name)
                    steps += [(end, self.weights[name] * step) for end, step in judged]
                else:
                    value = float(found)
            except Exception as error:  # code we did not write: its failure becomes data
                return Score(
                    reward=None, parts=parts, note=f"{name}: {type(error).__name__}: {error}"
                )
            if not math.isfinite(value):
                return Score(reward=None, parts=parts, note=f"{name} returned {value}")
            parts[name] = value
        total = sum(self.weights[name] * value for name, value in parts.items())
        rest = sum(self.weights[name] * parts[name] for name in parts if name not in stepwise)
        longest, buffer, penalty = self.overlong
        if buffer:
            parts["overlong"] = overlong_penalty(attempt.num_tokens, longest, buffer)
            total += penalty * parts["overlong"]
            rest += penalty * parts["overlong"]
        if steps and rest:  # what is not about a step is about the end
            steps.append((len(attempt.text), rest))
        return Score(reward=total, parts=parts, steps=tuple(sorted(steps)))


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """0 up to `longest - buffer` tokens, then falling in a straight line to -1 at `longest` (DAPO,
    arXiv 2503.14476, eq. 13).

    >>> [overlong_penalty(length, 100, 20) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return min(max(longest - buffer - length, -buffer), 0) / buffer


def find_verifier(name: str) -> Verifier:
    """The function behind a built-in name or a `module:function` path.

    Raises ValueError when there is none, saying which names there are.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(
            f"rewards.verifiers: {name!r} is not a built-in verifier ({', '.join(BUILT_IN)}); "
            "name your own as 'module:function'"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module: whatever it raises is about it, not about us
        raise ValueError(
            f"rewards.verifiers: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    verifier = getattr(module, function_name, None)
    if verifier is None:
        raise ValueError(
            f"rewards.verifiers: module {module_name!r} has no function {function_name!r}"
        )
    if not callable(verifier):
        raise ValueError(f"rewards.verifiers: {name!r} is a {type(verifier).__name__}, no function")
    return cast(Verifier, verifier)
