"""Held-out prompts: how good is the policy that the samplers hold now?"""

import asyncio
from typing import TYPE_CHECKING

from rewards import Score
from rollout import Completion, Prompt
from rollout.sampler import sample_seed

if TYPE_CHECKING:
    from cluster.run import Run


async def evaluate(run: "Run") -> dict[str, float]:
    """Mean of the reward and of each of its parts over the held-out prompts, under `eval/`.

    One greedy completion per prompt, or `eval.samples` sampled ones: then the parts are means over
    all samples (avg@k), and `eval/pass_at_k` is the share of prompts of which any sample got full
    marks on the headline part.
    """
    results = await asyncio.gather(*(_attempt(run, prompt) for prompt in run.inputs.held_out))
    scores = [score for _, group in results for score in group]
    scored = [s for s in scores if s.reward is not None]
    metrics = {
        "eval/verifier_errors": float(len(scores) - len(scored)),
        "eval/length": sum(len(c.token_ids) for cs, _ in results for c in cs) / len(scores),
    }
    if not scored:
        raise RuntimeError(f"no held-out completion could be scored; the first: {scores[0].note}")
    metrics["eval/reward"] = sum(s.reward or 0.0 for s in scored) / len(scored)
    for name in run.config.rewards.verifiers:
        metrics[f"eval/{name}"] = sum(s.parts.get(name, 0.0) for s in scored) / len(scored)
    if run.config.eval.samples > 1:
        headline = run.headline
        passed = [any(s.parts.get(headline, 0.0) >= 1 for s in group) for _, group in results]
        metrics["eval/pass_at_k"] = sum(passed) / len(passed)
    run.examples = [_example(run, *pair) for pair in zip(run.inputs.held_out, results, strict=True)]
    return metrics


async def _attempt(run: "Run", prompt: Prompt) -> tuple[tuple[Completion, ...], list[Score]]:
    settings = run.config.eval
    sampling = run.config.sampler.sampling.model_copy(update={"temperature": settings.temperature})
    seeds = [
        sample_seed(f"{run.config.seed}/eval", prompt.id, 0, sample)
        for sample in range(settings.samples)
    ]
    completions = await run.samplers.call(
        "generate", prompt, sampling, seeds if settings.samples > 1 else []
    )
    scores = await run.scorers.call("score", prompt.answer, [c.attempt() for c in completions])
    return completions, scores


def _example(run: "Run", prompt: Prompt, result: tuple) -> dict[str, str | float | None]:
    completions, scores = result
    return {
        "prompt": prompt.text,
        "completion": completions[0].text,
        "answer": prompt.answer,
        "reward": scores[0].reward,
    }
