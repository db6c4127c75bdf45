"""Judging completions: what scorers, reward models and services say, put together.

Consumes completions as they are sampled; waits for all verifiers of a group; a slow service holds
up its own groups only.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from cluster.errors import Lost
from cluster.pool import Pool
from rewards import Attempt, RewardConfig, Score, Task
from rewards.packed import Judged, Verdicts, pack_groups, seconds_of, unpack_verdicts
from rewards.programs.sandbox import Unavailable, best_tier
from rewards.reward_model import RewardModelConfig
from rewards.score import failure
from rewards.scorer import LANES, rubric_of, settings_of
from rewards.services import HttpConfig, JudgeConfig
from rewards.verifiers import SERVICES, Verifier, load
from rollout import Completion, Prompt

KINDS = {"reward_model": RewardModelConfig, "http": HttpConfig, "judge": JudgeConfig}

TRAVEL_SECONDS = 40e-3
"""The most work, of verifiers, that travels in one call where several groups do."""
MOST_TOGETHER = 128

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


def check(config: RewardConfig, *, grows: bool = False) -> list[str]:
    """What was found, for people; the tier of the sandbox where programs are run.

    Raises ValueError for a verifier that is not there, options that it does not take, programs
    without a sandbox, and one that judges siblings together where a group `grows` round by round.
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
            if verifier.form.batch and grows:
                raise ValueError(
                    f"verifier {verifier.name} ({verifier.form.name} form) judges all completions "
                    "of a prompt together, and schedule.max_group_size samples and scores them "
                    "round by round: set it to 0, or write the verifier for one completion"
                )
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


class Scorers:
    """Groups on their way to the scorers. At most `LANES` calls of each scorer are under way, and
    whichever is free first takes the next: nobody stands in line behind a slow one.

    Groups that wait travel together where the verifiers are so quick that a call would cost more
    than they do. Where one of them takes long after all, the others are asked for again, alone.
    Where a scorer dies, each group that it had is asked for again while nobody else is with any
    scorer: whoever kills a second one is known by that.
    """

    def __init__(self, pool: Pool, needs: Callable[[Attempt], bool]) -> None:
        self._pool = pool
        self._needs = needs
        self._waiting: deque[Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._on_trial = False
        """The only call under way is of a group that may be what kills scorers."""
        self._seconds_per_group = TRAVEL_SECONDS

    async def verdicts(self, task: Task, attempts: Sequence[Attempt]) -> list[Verdicts]:
        """Raises Lost when a second scorer dies of it, RuntimeError naming one that does not
        answer."""
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting.append(Waiting(task, attempts, answer))
        if len(self._waiting) == 1:  # with all that come in this turn of the loop
            loop.call_soon(self._send)
        return await answer

    def _send(self) -> None:
        while self._waiting and self._has_a_lane():
            together = self._next()
            self._on_trial = together[0].suspect
            call = asyncio.create_task(self._call(together))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _has_a_lane(self) -> bool:
        if self._on_trial or self._waiting[0].suspect:
            return not self._calls
        return len(self._calls) < LANES * len(self._pool.members)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._on_trial = self._on_trial and bool(self._calls)
        self._send()

    def _next(self) -> list["Waiting"]:
        """Those that travel in the next call."""
        together = [self._waiting.popleft()]
        share = 1 + len(self._waiting) // max(len(self._pool.members), 1)
        most = min(MOST_TOGETHER, share, TRAVEL_SECONDS / max(self._seconds_per_group, 1e-9))
        while self._waiting and len(together) < int(most):
            if together[0].alone or self._waiting[0].alone:
                break
            together.append(self._waiting.popleft())
        return together

    async def _call(self, together: list["Waiting"]) -> None:
        together = [each for each in together if not each.answer.done()]  # its caller has gone
        if not together:
            return
        try:
            groups = [(each.task, each.attempts) for each in together]
            judged = await self._pool.call("judge", pack_groups(groups, self._needs))
            self._deliver(together, judged)
        except Lost as error:
            self._lost(together, error)
        except BaseException as error:  # whatever it is, nobody may wait for ever
            for each in together:
                if not each.answer.done():
                    each.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _lost(self, together: list["Waiting"], error: Lost) -> None:
        """A scorer died under these groups: of one of them, of another call, or of nobody's."""
        for each in reversed(together):
            if not each.suspect:
                self._waiting.appendleft(replace(each, alone=True, suspect=True))
            elif not each.answer.done():
                each.answer.set_exception(error)

    def _deliver(self, together: list["Waiting"], judged: Judged) -> None:
        count = sum(len(each.attempts) for each in together)
        verdicts = unpack_verdicts(judged.pieces, count)
        in_order = iter(verdicts)
        again = []
        for number, each in enumerate(together):
            found = [next(in_order) for _ in each.attempts]
            if number in judged.again:
                again.append(replace(each, alone=True))
            elif not each.answer.done():
                each.answer.set_result(found)
        self._waiting.extendleft(reversed(again))  # the oldest groups are waited for
        if again:
            self._seconds_per_group = TRAVEL_SECONDS
        else:
            spent = seconds_of(verdicts) / len(together)
            self._seconds_per_group += (spent - self._seconds_per_group) / 8


@dataclass(slots=True, eq=False)
class Waiting:
    task: Task
    attempts: Sequence[Attempt]
    answer: asyncio.Future[list[Verdicts]]
    alone: bool = False
    """Not with other groups in a call"""
    suspect: bool = False
    """A scorer died under it."""


class Scoring:
    """The pools that judge, and the rubric that adds up what they say."""

    def __init__(
        self, config: RewardConfig, max_tokens: int, scorers: Pool, services: dict[str, Pool]
    ) -> None:
        self._rubric = rubric_of(config, max_tokens)
        functions = functions_of(config)
        self._wants_tokens = any(verifier.form.wants_tokens for verifier in functions)
        self._functions = [verifier.name for verifier in functions]
        self._scorers = Scorers(scorers, self._rubric.needs)
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
            try:
                verdicts = await self._scorers.verdicts(task, attempts)
            except Lost as error:  # like a verifier that fails
                verdicts = [dict.fromkeys(self._functions, failure(error)) for _ in attempts]
            for mine, theirs in zip(found, verdicts, strict=True):
                mine |= theirs

        asking: list[Any] = [ask_scorers()] if self._functions else []
        if wanted:
            asking += [ask_service(name, pool) for name, pool in self._services.items()]
        await asyncio.gather(*asking)
        return [self._rubric.score(a, v) for a, v in zip(attempts, found, strict=True)]


def trainable(completions: Sequence[Completion], scores: Sequence[Score]) -> list[Score]:
    """The scores, but for completions that cannot be learned from whatever they are worth."""
    if np.isfinite(np.concatenate([completion.logprobs for completion in completions])).all():
        return list(scores)
    note = "the sampler gave it a logprob that is not finite"
    return [
        score
        if completion.is_finite
        else replace(score, reward=None, outcome="unscorable", note=note, steps=())
        for completion, score in zip(completions, scores, strict=True)
    ]
