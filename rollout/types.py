"""The four records. All frozen: a stage that adds knowledge returns a new type.

The four arrays of a completion are aligned; the Arrow schema (`rollout/schema.py`) checks that
once, when groups become a table.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards import Attempt, Score, Task

FinishReason = Literal["stop", "length", "abort"]

Steps = tuple[tuple[int, float], ...]
"""(number of tokens up to the end of a step, its reward), in order."""

NO_POLICY = -1
"""Policy version of tokens that no policy of this run sampled: demonstrations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    id: str
    """Where it came from: "train/17" is row 17 of train.jsonl."""
    token_ids: np.ndarray
    """int32 [T]; the chat template is applied. These go to vLLM and to the learner unchanged."""
    text: str
    answer: str
    source: str
    extra: str = ""
    """What a reward function may ask for besides: the other columns of its row, a JSON object."""

    def task(self) -> Task:
        """What verifiers may know of it."""
        extra = json.loads(self.extra) if self.extra else {}
        prompt = extra.get("prompt", self.text)
        return Task(prompt=prompt, answer=self.answer, source=self.source, extra=extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    token_ids: np.ndarray
    """int32 [T], the end-of-turn token included where there is one."""
    trainable: np.ndarray
    """bool [T]; false on tokens that the policy did not choose."""
    logprobs: np.ndarray
    """float32 [T]; behaviour logprobs, 0 where not trainable."""
    versions: np.ndarray
    """int32 [T]; the policy version that sampled each token."""
    text: str
    finish_reason: FinishReason

    @property
    def is_finite(self) -> bool:
        """Every trainable token has a logprob."""
        finite = np.isfinite(self.logprobs)
        return bool(finite.all() or (finite | ~self.trainable).all())

    def attempt(self, *, tokens: bool = False) -> Attempt:
        """What verifiers may know of it; its token ids only where one asks for them."""
        return Attempt(
            text=self.text,
            num_tokens=len(self.token_ids),
            truncated=self.finish_reason != "stop",
            token_ids=self.token_ids.tolist() if tokens else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    ticket: int
    """Number of admission: 0, 1, 2, ... in the order in which prompts entered."""
    prompt: Prompt
    completions: tuple[Completion, ...]
    rounds: tuple[int, ...] = ()
    """Per completion, in which round it was sampled; empty where all were sampled at once."""

    @property
    def oldest_version(self) -> int:
        """The oldest policy version among the trainable tokens."""
        versions = np.concatenate([c.versions for c in self.completions])
        trainable = np.concatenate([c.trainable for c in self.completions])
        return int(versions[trainable].min())


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    group: Group
    scores: tuple[Score, ...]
    steps: tuple[Steps, ...] = ()
    """Per completion, where verifiers judged single steps; empty where none did."""
    greedy_reward: float | None = None
    """Reward of the prompt's greedy completion, where the algorithm wants it as the baseline."""

    @property
    def rewards(self) -> list[float]:
        """The rewards of the completions that could be scored."""
        return [s.reward for s in self.scores if s.reward is not None]

    @property
    def is_uniform(self) -> bool:
        """Every reward is the same: no signal for a group baseline."""
        rewards = self.rewards
        return not rewards or min(rewards) == max(rewards)
