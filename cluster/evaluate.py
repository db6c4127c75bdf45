"""Held-out prompts: how good is the policy that the samplers hold now?"""

import asyncio
import json
import math
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from cluster.config import RunConfig
from cluster.files import add_line, free_name, read_lines, replace_text
from cluster.scoring import Scoring
from rewards import Score
from rewards.answers import as_number, final_answer
from rollout import Completion, Prompt
from rollout.sampler import sample_seed

RESAMPLES = 1_000


class MixedVersions(RuntimeError):
    """Not all of an evaluation's tokens are of one policy."""


Attempted = tuple[tuple[Completion, ...], list[Score]]
"""The completions of one prompt, and their scores."""


class Evaluations:
    """Those that were done, by step; each is a line of `evaluations.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "evaluations.jsonl"
        self.metrics: dict[int, dict[str, float]] = {}
        self.examples: dict[int, str] = {}
        """What the first held-out prompt was answered with."""
        for line in read_lines(self._path):
            self.metrics[line["step"]], self.examples[line["step"]] = (
                line["metrics"],
                line["example"],
            )

    def add(self, step: int, metrics: dict[str, float], example: str) -> None:
        self.metrics[step], self.examples[step] = metrics, example
        add_line(self._path, {"step": step, "metrics": metrics, "example": example})

    def forget_after(self, step: int) -> None:
        """Those of versions that are trained anew; a copy stays."""
        lines = read_lines(self._path)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            shutil.copy2(self._path, free_name(self._path))
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        for later in [each for each in self.metrics if each > step]:
            del self.metrics[later], self.examples[later]


async def evaluate(
    config: RunConfig,
    prompts: Sequence[Prompt],
    *,
    generate: Callable[..., Awaitable[tuple[Completion, ...]]],
    scoring: Scoring,
    version: int | None = None,
) -> tuple[dict[str, float], str]:
    """`summary` of the held-out prompts, and the first one's first completion, for people to see
    what the numbers mean. One greedy completion per prompt, or `eval.samples` sampled ones.

    Raises RuntimeError when nothing could be scored, MixedVersions when a token was not sampled by
    `version`.
    """
    results = await asyncio.gather(
        *(_attempt(config, prompt, generate, scoring) for prompt in prompts)
    )
    mixed = {int(v) for cs, _ in results for c in cs for v in c.versions} - {version}
    if version is not None and mixed:
        raise MixedVersions(
            f"the evaluation of version {version} has tokens of versions {sorted(mixed)}: an "
            "update went through it, which is a bug"
        )
    return summary(results, list(config.rewards.verifiers)), results[0][0][0].text


async def _attempt(
    config: RunConfig,
    prompt: Prompt,
    generate: Callable[..., Awaitable[tuple[Completion, ...]]],
    scoring: Scoring,
) -> Attempted:
    settings = config.eval
    changes = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens or config.sampler.sampling.max_tokens,
    }
    sampling = config.sampler.sampling.model_copy(update=changes)
    seeds = [
        sample_seed(f"{config.seed}/eval", prompt.id, 0, sample)
        for sample in range(settings.samples)
    ]
    completions = await generate(prompt, sampling, seeds if settings.samples > 1 else [])
    return completions, await scoring.score(prompt, completions)


def summary(results: Sequence[Attempted], verifiers: Sequence[str]) -> dict[str, float]:
    """Means over all completions that could be scored, under `eval/`: of the reward, of each part
    (avg@k where there are k samples), the length, and the share that was cut.

    A prompt is solved by a completion with full marks from the first verifier. `pass_at_k` is the
    chance that one of k samples solves it, `maj_at_k` whether the commonest of the k answers does.
    `_low` and `_high` hold 95 % of the means of prompts drawn anew (bootstrap): what chance in the
    choice of the prompts does, not in the model. Raises RuntimeError when nothing was scored.
    """
    scores = [score for _, group in results for score in group]
    completions = [c for cs, _ in results for c in cs]
    scored = [s for s in scores if s.reward is not None]
    if not scored:
        raise RuntimeError(f"no held-out completion could be scored; the first: {scores[0].note}")
    metrics = {
        "eval/reward": sum(s.reward or 0.0 for s in scored) / len(scored),
        "eval/verifier_errors": float(len(scores) - len(scored)),
        "eval/length": sum(len(c.token_ids) for c in completions) / len(scores),
        "eval/truncated": sum(c.finish_reason == "length" for c in completions) / len(scores),
    }
    for name in verifiers:
        metrics[f"eval/{name}"] = sum(s.parts.get(name, 0.0) for s in scored) / len(scored)
    headline = verifiers[0]
    marks = [
        np.array([s.parts.get(headline, 0.0) for s in group if s.reward is not None])
        for _, group in results
    ]
    per_prompt = {f"eval/{headline}": [float(m.mean()) for m in marks if len(m)]}
    most = max(len(group) for _, group in results)
    for k in (2**i for i in range(1, most.bit_length())):
        chances = [pass_at_k(len(m), int((m >= 1).sum()), k) for m in marks if len(m) >= k]
        if chances:
            per_prompt[f"eval/pass_at_{k}"] = chances
    if most > 1:
        votes = [_majority_is_right(group, headline) for group in results]
        per_prompt[f"eval/maj_at_{most}"] = [float(vote) for vote in votes]
    for name, values in per_prompt.items():
        metrics.setdefault(name, sum(values) / len(values))
        metrics[f"{name}_low"], metrics[f"{name}_high"] = _interval(values)
    return metrics


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Chance that one of k of the samples, drawn without putting back, solves the prompt: the
    unbiased estimate of Chen et al. (arXiv 2107.03374, eq. 1).

    >>> [round(pass_at_k(4, 1, k), 3) for k in (1, 2, 4)]
    [0.25, 0.5, 1.0]
    """
    return 1.0 - math.comb(samples - solved, k) / math.comb(samples, k)


def _majority_is_right(attempted: Attempted, headline: str) -> bool:
    """Whether the answer that most samples give solves the prompt; of equals, the one given first.
    A completion without an answer has no vote."""
    ballots: Counter[str] = Counter()
    solves: dict[str, bool] = {}
    for completion, score in zip(*attempted, strict=True):
        answer = final_answer(completion.text)
        if answer is None:
            continue
        number = as_number(answer)
        ballot = str(number.normalize()) if number is not None else answer.strip().casefold()
        ballots[ballot] += 1
        solves[ballot] = solves.get(ballot, False) or score.parts.get(headline, 0.0) >= 1
    return bool(ballots) and solves[ballots.most_common(1)[0][0]]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
    means = np.asarray(values)[drawn].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
