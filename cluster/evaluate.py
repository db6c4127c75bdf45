"""Held-out prompts: how good is the policy that the samplers hold now?"""

import asyncio
from collections.abc import Sequence

from cluster.config import RunConfig
from cluster.pool import Pool
from cluster.scoring import Scoring
from rewards import Score
from rollout import Completion, Prompt
from rollout.sampler import sample_seed


async def evaluate(
    config: RunConfig, prompts: Sequence[Prompt], *, samplers: Pool, scoring: Scoring
) -> tuple[dict[str, float], str]:
    """Mean of the reward and of each of its parts over the held-out prompts, under `eval/`.

    One greedy completion per prompt, or `eval.samples` sampled ones: then the parts are means over
    all samples (avg@k), and `eval/pass_at_k` is the share of prompts of which any sample got full
    marks on the first verifier listed. Also the first prompt's first completion, for people to
    see what the numbers mean. Raises RuntimeError when nothing could be scored.
    """
    results = await asyncio.gather(
        *(_attempt(config, prompt, samplers, scoring) for prompt in prompts)
    )
    scores = [score for _, group in results for score in group]
    scored = [s for s in scores if s.reward is not None]
    if not scored:
        raise RuntimeError(f"no held-out completion could be scored; the first: {scores[0].note}")
    metrics = {
        "eval/reward": sum(s.reward or 0.0 for s in scored) / len(scored),
        "eval/verifier_errors": float(len(scores) - len(scored)),
        "eval/length": sum(len(c.token_ids) for cs, _ in results for c in cs) / len(scores),
    }
    verifiers = list(config.rewards.verifiers)
    for name in verifiers:
        metrics[f"eval/{name}"] = sum(s.parts.get(name, 0.0) for s in scored) / len(scored)
    if config.eval.samples > 1:
        passed = [any(s.parts.get(verifiers[0], 0.0) >= 1 for s in group) for _, group in results]
        metrics["eval/pass_at_k"] = sum(passed) / len(passed)
    return metrics, results[0][0][0].text


async def _attempt(
    config: RunConfig, prompt: Prompt, samplers: Pool, scoring: Scoring
) -> tuple[tuple[Completion, ...], list[Score]]:
    settings = config.eval
    sampling = config.sampler.sampling.model_copy(update={"temperature": settings.temperature})
    seeds = [
        sample_seed(f"{config.seed}/eval", prompt.id, 0, sample)
        for sample in range(settings.samples)
    ]
    completions = await samplers.call(
        "generate", prompt, sampling, seeds if settings.samples > 1 else []
    )
    return completions, await scoring.score(prompt, completions)
