"""Scorer: what a reward actor runs. A plain class; a REPL can use it as it is."""

from collections.abc import Sequence
from dataclasses import asdict

from rewards.config import RewardConfig
from rewards.isolate import Child, ChildDied, ChildTimeout
from rewards.score import Attempt, Score


class Scorer:
    """Scores the completions of one prompt at a time, in a child that is replaced when it hangs or
    dies. The verdicts of siblings do not depend on it: scoring goes on with the next one."""

    def __init__(self, config: RewardConfig, max_tokens: int = 0) -> None:
        """`max_tokens` is the longest completion that the sampler may give; only the overlong
        penalty asks."""
        self._config = config
        self._max_tokens = max_tokens
        self._child = self._start()

    def _start(self) -> Child:
        return Child(
            {
                "weights": self._config.verifiers,
                "truncated": self._config.truncated,
                "overlong": (
                    self._max_tokens,
                    self._config.overlong_buffer,
                    self._config.overlong_penalty,
                ),
                "memory_gib": self._config.memory_gib,
            }
        )

    def score(self, answer: str, attempts: Sequence[Attempt]) -> list[Score]:
        """One Score per attempt, in order. A completion whose scoring outlasts the timeout gets an
        honest 0 and `parts["timeout"] = 1`; one whose scoring kills the child gets `reward=None`.
        """
        scores: list[Score] = []
        while len(scores) < len(attempts):
            rest = attempts[len(scores) :]
            try:
                self._child.send({"answer": answer, "attempts": [asdict(a) for a in rest]})
                for _ in rest:
                    found = self._child.receive(self._config.timeout)
                    steps = tuple((end, value) for end, value in found.pop("steps"))
                    scores.append(Score(**found, steps=steps))
            except ChildTimeout:
                self._replace()
                scores.append(
                    Score(
                        reward=0.0,
                        parts={"timeout": 1.0},
                        note=f"scoring took more than {self._config.timeout} s",
                    )
                )
            except ChildDied as error:
                self._replace()
                scores.append(
                    Score(reward=None, parts={}, note=f"the scoring child died ({error})")
                )
        return scores

    def _replace(self) -> None:
        self._child.kill()
        self._child = self._start()

    def close(self) -> None:
        self._child.kill()
