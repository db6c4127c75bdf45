"""Where the steps of a completion end, in tokens: verifiers see text, the learner sees tokens."""

import bisect
import functools
from typing import Any

from rewards import Score
from rollout.types import Completion, Steps


def step_tokens(tokenizer: Any, completion: Completion, score: Score) -> Steps:
    """For each step, the least number of tokens whose text reaches its end; the whole completion,
    with its end-of-turn token, for one that ends where the text does or beyond. Steps that end in
    the same token are added up.

    The text of a prefix of tokens grows with the prefix, so each end is found by bisection, in
    log2(tokens) decodings.
    """
    counts = range(1, len(completion.token_ids) + 1)

    @functools.cache
    def text_length(count: int) -> int:
        return len(tokenizer.decode(completion.token_ids[:count], skip_special_tokens=True))

    ends: dict[int, float] = {}
    for characters, reward in score.steps:
        at = len(counts)
        if characters < len(completion.text):
            at = min(bisect.bisect_left(counts, characters, key=text_length) + 1, at)
        ends[at] = ends.get(at, 0.0) + reward
    return tuple(sorted(ends.items()))
