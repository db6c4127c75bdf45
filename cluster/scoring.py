"""Judging completions: what scorers, reward models and services say, put together.

Consumes completions as they are sampled; waits for all verifiers of a group; a slow service holds
up its own groups only.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cluster.pool import Pool
from rewards import RewardConfig, Score
from rewards.programs.sandbox import Unavailable, best_tier
from rewards.reward_model import RewardModelConfig
from rewards.score import failure
from rewards.scorer import Verdicts, rubric_of, settings_of
from rewards.services import HttpConfig, JudgeConfig
from rewards.verifiers import SERVICES, Verifier, load
from rollout import Completion, Prompt

KINDS = {"reward_model": RewardModelConfig, "http": HttpConfig, "judge": JudgeConfig}

ServiceConfig = RewardModelConfig | HttpConfig | JudgeConfig


def services_of(config: RewardConfig) -> dict[str, ServiceConfig]:
    """The verifiers that are no functions. Raises ValueError for options that are wrong."""
    services: dict[str, ServiceConfig] = {}
    for name, verifier in config.verifiers.items():
        use = verifier.use or name
        if use not in SERVICES:
            continue
        try:
            services[name] = KINDS[use](**verifier.options)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            )
            known = ", ".join(KINDS[use].model_fields)
            raise ValueError(
                f"rewards.verifiers.{name} ({use}): {wrong} (it takes {known})"
            ) from None
    return services


def functions_of(config: RewardConfig) -> list[Verifier]:
    """The verifiers that are functions. Raises ValueError naming one that cannot be loaded."""
    return [load(**verifier) for verifier in settings_of(config)["verifiers"]]


def check(config: RewardConfig) -> list[str]:
    """What was found, for people; the tier of the sandbox where programs are run.

    Raises ValueError for a verifier that is not there, options that it does not take, or programs
    without a sandbox.
    """
    services_of(config)
    notes: list[str] = []
    for verifier in functions_of(config):
        if verifier.built_in == "code":
            seconds = verifier.options.get("total_seconds", 8.0)
            if seconds + 1 > config.timeout:
                raise ValueError(
                    f"rewards.verifiers.{verifier.name}: total_seconds={seconds:g} does not fit in "
                    f"rewards.timeout={config.timeout:g} with a second to spare: raise the latter"
                )
            notes.append(f"verifier {verifier.name}: {sandbox_of(config)}")
        elif not verifier.built_in:
            whole = ", once for all completions of a prompt" * verifier.form.batch
            notes.append(f"verifier {verifier.name}: {verifier.form.name} form{whole}")
    return notes


def sandbox_of(config: RewardConfig) -> str:
    """Which sandbox programs run in. Raises ValueError where there is none."""
    try:
        tier = best_tier(allow_unsandboxed=config.allow_unsandboxed_code)
    except Unavailable as error:
        raise ValueError(str(error)) from error
    if tier == "none":
        return "programs of the model run WITHOUT a sandbox, as rewards.allow_unsandboxed_code asks"
    return f"programs run in the {tier} sandbox"


class Scoring:
    """The pools that judge, and the rubric that adds up what they say."""

    def __init__(
        self, config: RewardConfig, max_tokens: int, scorers: Pool, services: dict[str, Pool]
    ) -> None:
        self._rubric = rubric_of(config, max_tokens)
        functions = functions_of(config)
        self._wants_tokens = any(verifier.form.wants_tokens for verifier in functions)
        self._has_functions = bool(functions)
        self._scorers = scorers
        self._services = services

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        """One score per completion. Raises RuntimeError naming a pool that does not answer."""
        task = prompt.task()
        attempts = [completion.attempt(tokens=self._wants_tokens) for completion in completions]
        found: list[Verdicts] = [{} for _ in attempts]
        wanted = [i for i, attempt in enumerate(attempts) if self._rubric.needs(attempt)]

        async def ask_service(name: str, pool: Pool) -> None:
            asked = [attempts[i] for i in wanted]
            try:
                verdicts = await pool.call("judge", task, asked)
            except (RuntimeError, ValueError) as error:  # ours to count, not the run's to end by
                verdicts = [failure(error)] * len(wanted)
            for i, verdict in zip(wanted, verdicts, strict=True):
                found[i][name] = verdict

        async def ask_scorers() -> None:
            verdicts = await self._scorers.call("verdicts", task, attempts)
            for mine, theirs in zip(found, verdicts, strict=True):
                mine |= theirs

        asking: list[Any] = [ask_scorers()] if self._has_functions else []
        if wanted:
            asking += [ask_service(name, pool) for name, pool in self._services.items()]
        await asyncio.gather(*asking)
        return [self._rubric.score(a, v) for a, v in zip(attempts, found, strict=True)]
