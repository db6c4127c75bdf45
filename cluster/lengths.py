"""How long a prompt's completions will be: as they were the last time.

Siblings are alike, and so are epochs: half of the variance of lengths lies between prompts. A
sampler that got the long ones is slow, however many groups it has.
"""

from collections.abc import Sequence

from rollout import Completion, Prompt

FADES = 0.98
"""Weight of what was known of all prompts when another group is seen: a policy's completions grow,
so old ones count for less."""


class Lengths:
    def __init__(self) -> None:
        self._of: dict[str, float] = {}
        self._usual = 0.0

    def saw(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        mean = sum(len(c.token_ids) for c in completions) / len(completions)
        self._of[prompt.id] = mean
        self._usual = FADES * self._usual + (1 - FADES) * mean if self._usual else mean

    def expected(self, prompt: Prompt) -> float:
        """Relative to the usual: 1 for a prompt that was never seen."""
        return self._of.get(prompt.id, self._usual) / self._usual if self._usual else 1.0
