"""Builders that let a test read as one sentence."""

from dataclasses import replace

import numpy as np

from rewards import Score
from rollout import Completion, Group, Prompt, ScoredGroup


def prompt(number: int = 0, length: int = 5, answer: str = "7") -> Prompt:
    ids = np.arange(1, length + 1, dtype=np.int32) + number % 50
    return Prompt(id=f"test/{number}", token_ids=ids, text="?", answer=answer, source="test")


def completion(length: int = 4, *, version: int = 0, seed: int = 0, text: str = "7") -> Completion:
    rng = np.random.default_rng(seed)
    return Completion(
        token_ids=rng.integers(1, 400, length).astype(np.int32),
        trainable=np.ones(length, dtype=np.bool_),
        logprobs=-rng.random(length).astype(np.float32),
        versions=np.full(length, version, dtype=np.int32),
        text=text,
        finish_reason="stop",
    )


def group(
    ticket: int = 0,
    rewards: tuple[float | None, ...] = (0.0, 1.0),
    *,
    version: int = 0,
    lengths: tuple[int, ...] = (),
) -> ScoredGroup:
    sizes = lengths or tuple(3 + (ticket + i) % 4 for i in range(len(rewards)))
    completions = tuple(
        completion(size, version=version, seed=100 * ticket + i) for i, size in enumerate(sizes)
    )
    scores = tuple(
        Score(reward=r, parts={"number": r})
        if r is not None
        else Score(reward=None, parts={}, outcome="unscorable", note="broke")
        for r in rewards
    )
    inner = Group(ticket=ticket, prompt=prompt(ticket), completions=completions)
    return ScoredGroup(group=inner, scores=scores)


def judged(scored: ScoredGroup, *, greedy: float | None = None, seed: int = 0) -> ScoredGroup:
    """The group with rewards for two steps of each completion, and for a greedy completion."""
    rng = np.random.default_rng(seed)
    steps = tuple(
        tuple(
            (int(end), float(reward))
            for end, reward in zip(
                sorted({max(1, len(c.token_ids) // 2), len(c.token_ids)}),
                rng.choice([0.0, 0.4, 1.0], 2),
                strict=False,
            )
        )
        for c in scored.group.completions
    )
    return replace(scored, steps=steps, greedy_reward=greedy)
