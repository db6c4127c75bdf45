"""The verdict on one completion, and the rubric that makes a reward of verdicts.

Invariant of this file: our failure is never the model's. What could not be judged is `unscorable`:
its reward is None, which leaves the completion out of the baseline and the loss, and is counted.
Only the completion's own doing (a wrong answer, a program that hangs or cheats) is worth a 0.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["scored", "unscorable", "timeout", "tampered"]
RAW_ANSWER = "__answer__"
"""Key in `Task.extra` of a reference answer that is no text."""
OUTCOMES: tuple[Outcome, ...] = ("scored", "unscorable", "timeout", "tampered")
"""`unscorable` is our failure; `timeout` and `tampered` are the completion's, and worth 0."""
FAULTS: tuple[Outcome, ...] = ("tampered", "timeout", "unscorable")
"""The first of them that applies is the completion's outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that a verifier may know of a prompt."""

    answer: str
    """The reference answer; for programs, the tests."""
    prompt: str | list[dict[str, Any]] = ""
    """The text, or the chat messages where the dataset has those."""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the dataset's row."""

    @property
    def reference(self) -> Any:
        """The reference answer as the dataset holds it: a number, a list, an object or a text."""
        return self.extra.get(RAW_ANSWER, self.answer)

    @property
    def text(self) -> str:
        """The prompt as one text."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(str(message.get("content", "")) for message in self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """All that a verifier may know of a completion."""

    text: str
    num_tokens: int
    truncated: bool
    """It was cut at the length limit: it did not end by itself."""
    token_ids: Sequence[int] = ()
    """Only where a verifier asks for them."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What one verifier says of one completion. A verifier may return it in place of a number. Not
    frozen, since one is made of every number: that would take three times as long."""

    value: float
    outcome: Outcome = "scored"
    note: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    """(characters up to the end of a step, its value)."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further figures, logged and not weighed."""
    seconds: float = 0.0

    def lasting(self, seconds: float) -> "Verdict":
        return dataclasses.replace(self, seconds=seconds)


@dataclass(slots=True, kw_only=True)
class Score:
    """Not frozen, as `Verdict`."""

    reward: float | None
    """The weighted sum of `parts`; None when it is `unscorable` (`note` says why)."""
    parts: Mapping[str, float]
    """Each verifier's own value, unweighted, and what figures it gave besides, as `name/figure`."""
    outcome: Outcome = "scored"
    note: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    """(characters up to the end of a step, its weighted value), in order; where verifiers judged
    steps, what the others gave is one more, at the end."""
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """How long each verifier took."""
    faults: Mapping[str, Outcome] | None = field(default=None, compare=False)
    """Of the verifiers that said something else than `scored`. None where that is not known: in a
    recorded table only `note` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Weighted verdicts.

    >>> rubric = Rubric(weights={"number": 1.0, "think_answer": 0.2})
    >>> attempt = Attempt(text="it is 42", num_tokens=4, truncated=False)
    >>> verdicts = {"number": Verdict(value=1.0), "think_answer": Verdict(value=0.0)}
    >>> score = rubric.score(attempt, verdicts)
    >>> score.reward, dict(score.parts), score.outcome
    (1.0, {'number': 1.0, 'think_answer': 0.0}, 'scored')
    """

    weights: Mapping[str, float]
    truncated: Literal["score", "zero"] = "score"
    overlong: tuple[int, int, float] = (0, 0, 0.0)
    """(longest completion, buffer, penalty): see `overlong_penalty`."""

    def needs(self, attempt: Attempt) -> bool:
        """Whether any verifier has to look at it."""
        return not (attempt.truncated and self.truncated == "zero")

    def score(self, attempt: Attempt, verdicts: Mapping[str, Verdict | None]) -> Score:
        """`None` is a verifier that does not apply here. The completion's own fault (tampering,
        then a timeout) outweighs a failure of ours, or failing us would be a way out of it."""
        if not self.needs(attempt):
            verdicts = {name: Verdict(value=0.0) for name in self.weights}
        given = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
        parts: dict[str, float] = {}
        seconds: dict[str, float] = {}
        faults: dict[str, Outcome] = {}
        notes: list[tuple[Outcome, str]] = []
        for name, verdict in given.items():
            seconds[name] = verdict.seconds
            if verdict.outcome != "unscorable":
                parts[name] = verdict.value
            if verdict.outcome != "scored":
                faults[name] = verdict.outcome
            if verdict.note:
                notes.append((verdict.outcome, f"{name}: {verdict.note}"))
        for name, verdict in given.items():
            if verdict.parts:
                parts |= {f"{name}/{key}": value for key, value in verdict.parts.items()}
        # One of weight 0 is only logged: what becomes of it decides nothing.
        weighed = [name for name in given if self.weights[name]]
        if not weighed and not any(self.weights.values()):
            weighed = list(given)
        for fault in FAULTS if faults else ():
            if any(given[name].outcome == fault for name in weighed):
                note = "; ".join(text for outcome, text in notes if outcome == fault)
                reward = None if fault == "unscorable" else 0.0
                return Score(
                    reward=reward,
                    parts=parts,
                    outcome=fault,
                    note=note,
                    seconds=seconds,
                    faults=faults,
                )
        if not weighed:
            note = f"none of {', '.join(self.weights)} applies"
            return Score(reward=None, parts={}, outcome="unscorable", note=note)
        total, rest = 0.0, 0.0
        steps: list[tuple[int, float]] = []
        for name in weighed:
            weight, verdict = self.weights[name], given[name]
            total += weight * verdict.value
            if verdict.steps:
                steps += [(end, weight * value) for end, value in verdict.steps]
            else:
                rest += weight * verdict.value
        longest, buffer, penalty = self.overlong
        if buffer:
            parts["overlong"] = overlong_penalty(attempt.num_tokens, longest, buffer)
            total += penalty * parts["overlong"]
            rest += penalty * parts["overlong"]
        if steps and rest:  # what is not about a step is about the end
            steps.append((len(attempt.text), rest))
        return Score(
            reward=total,
            parts=parts,
            note="; ".join(text for _, text in notes) if notes else "",
            steps=tuple(sorted(steps)) if steps else (),
            seconds=seconds,
            faults=faults,
        )


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """0 up to `longest - buffer` tokens, then falling in a straight line to -1 at `longest` (DAPO,
    arXiv 2503.14476, eq. 13).

    >>> [overlong_penalty(length, 100, 20) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return min(max(longest - buffer - length, -buffer), 0) / buffer


def failure(error: BaseException | str) -> Verdict:
    """The verdict when a verifier failed: ours, not the completion's."""
    note = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return Verdict(value=0.0, outcome="unscorable", note=note[:500])


def finite(verdict: Verdict) -> Verdict:
    """The verdict itself, or a failure where one of its numbers is none."""
    numbers = [verdict.value, *verdict.parts.values(), *(value for _, value in verdict.steps)]
    bad = next((number for number in numbers if not math.isfinite(number)), None)
    return verdict if bad is None else failure(f"it returned {bad}")
