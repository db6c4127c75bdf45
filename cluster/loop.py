"""The main loop. Read this first.

    prompts -> admit (a slot is charged) -> sample a group -> score -> ready -+
       ^                                                                      | take, oldest first
       +--- release the slots <- publish(version + 1) <- update(table) <------+

Synchronous, one-step-off and asynchronous training are this loop with `schedule.max_staleness` 0,
1, n. Beyond 0 a publish goes on while the next groups are trained; slots are released when the
samplers hold the new weights.
"""

import asyncio

from cluster.metrics import describe, flight, staleness
from cluster.poison import Poisoned
from cluster.run import Run
from rewards import Score
from rollout import Completion, Prompt, ScoredGroup
from rollout.sampler import sample_seed


async def train(run: Run) -> None:
    """Train to the last step. Consumes groups from the window; waits for them, for the learner and
    for the samplers to hold the new weights; unblocks admission by releasing slots."""
    step = await run.restore()
    await run.publish(step)
    async with asyncio.TaskGroup() as background:
        if step >= run.config.steps:  # its last evaluation or checkpoint may be what is missing
            await run.milestones(step, background)
            return
        await run.begin_evaluation(step, background)
        admission = background.create_task(admit(run))  # its crash cancels this block
        while step < run.config.steps:
            with run.timed("rollout"):
                groups = await run.take()
            metrics = check(run, groups, version=step)
            table = run.table(groups, step=step + 1)
            sealed = run.ledger.record(step + 1, table)
            metrics |= await run.update(sealed)
            run.ledger.commit(step + 1, groups, run.window.state())
            step += 1
            run.committed(step, metrics)
            metrics |= await run.publish(step, len(groups), background)
            run.log(step, metrics)
            await run.milestones(step, background)
        admission.cancel()


def check(run: Run, groups: list[ScoredGroup], *, version: int) -> dict[str, float]:
    """Metrics of groups that are about to be trained. Raises RuntimeError where training them
    would make no sense; their staleness is looked at by the learner, token by token."""
    if version == run.resumed_from:
        _check_first(run, groups)
    _check_outcomes(run, groups, version)
    metrics = describe(groups) | staleness(groups, version) | flight(run.window)
    return metrics


def _check_first(run: Run, groups: list[ScoredGroup]) -> None:
    """Whether verifiers and samplers, or a recording, give what the algorithm learns from. Later
    steps may lack it here and there: a completion without steps, a baseline without a score."""
    algorithm, name = run.algorithm, f"learner.algorithm.name={run.config.learner.algorithm.name}"
    if algorithm.judged_steps and not any(group.steps for group in groups):
        raise RuntimeError(
            f"{name} learns from rewards of single steps, and none of "
            f"{', '.join(run.config.rewards.verifiers)} returned any: a verifier that judges steps "
            "returns [(characters up to a step's end, value), ...]"
        )
    if algorithm.greedy and all(group.greedy_reward is None for group in groups):
        raise RuntimeError(
            f"{name} compares with the greedy completion of each prompt, and none of these groups "
            "has a reward for one: score them, or replay a run that sampled them"
        )


def _check_outcomes(run: Run, groups: list[ScoredGroup], version: int) -> None:
    """A run whose verifiers fail most of the time learns from the rest alone: better no run."""
    scores = [score for group in groups for score in group.scores]
    failed = [score.note for score in scores if score.outcome == "unscorable"]
    if len(failed) > run.config.rewards.max_unscorable * len(scores):
        raise RuntimeError(
            f"step {version + 1}: {len(failed)} of {len(scores)} completions could not be scored "
            f"(rewards.max_unscorable={run.config.rewards.max_unscorable:g}); the first: "
            f"{failed[0]}"
        )


async def admit(run: Run) -> None:
    """Consumes slots; waits for a free one; unblocked by `release`. Ends with the run."""
    async with asyncio.TaskGroup() as rollouts:
        while True:
            ticket = await run.window.admit()
            if run.inputs.prompts is None:
                await run.window.ready(ticket, run.inputs.group(ticket))
            else:
                rollouts.create_task(roll_out(run, ticket))


async def roll_out(run: Run, ticket: int) -> None:
    """Sample and score one group. Consumes a ticket; waits for a sampler and a scorer; unblocks
    `take`, or `admit` where nothing can be learned from the group or the prompt kills samplers."""
    prompt = run.inputs.prompts.at(ticket)  # pyright: ignore[reportOptionalMemberAccess]
    completions, scores = (), []
    try:
        while not scores or goes_on(run, scores):
            more = await sample(run, ticket, prompt, start=len(completions))
            completions = (*completions, *more)
            scores += await run.scoring.score(prompt, more)
    except Poisoned as error:
        run.put_aside(ticket, prompt, str(error))
        await run.window.drop(ticket)
        return
    run.sampled_groups += 1
    if any(score.steps for score in scores):  # whose text is tokenized, which takes long
        group = await asyncio.to_thread(run.judged, ticket, prompt, completions, scores)
    else:
        group = run.judged(ticket, prompt, completions, scores)
    discards = run.config.schedule.uniform_groups == "discard"
    if discards and group.is_uniform and group.rewards:  # without any: rewards.max_unscorable
        await run.window.discard(ticket)
        guard(run, group)
    else:
        await run.window.ready(ticket, group)


def goes_on(run: Run, scores: list[Score]) -> bool:
    """Whether a group gets another round: its rewards are all the same so far, and it may."""
    rewards = {score.reward for score in scores if score.reward is not None}
    return len(rewards) == 1 and len(scores) < run.config.schedule.max_group_size


async def sample(run: Run, ticket: int, prompt: Prompt, *, start: int) -> tuple[Completion, ...]:
    """A round of completions of a ticket, numbered from `start`, from the first token where an
    update has put an end to them."""
    seeds = [
        sample_seed(str(run.config.seed), prompt.id, ticket, sample)
        for sample in range(start, start + run.config.sampler.group_size)
    ]
    sampling, load = run.config.sampler.sampling, run.lengths.expected(prompt)
    while True:
        completions = await run.generate(prompt, sampling, seeds, load=load)
        if completions and run.algorithm.greedy:  # one more, the baseline, which is not trained
            greedy = await run.generate(prompt, sampling, [])
            completions = greedy and (*completions, *greedy)
        if completions:
            run.lengths.saw(prompt, completions)
            return completions


def guard(run: Run, group: ScoredGroup) -> None:
    """A search for groups worth training must not go on for ever."""
    most = run.config.schedule.max_discards * run.config.schedule.groups_per_step
    if run.window.discarded_in_a_row < most:
        return
    rewards = sorted({round(reward, 4) for reward in group.rewards})
    raise RuntimeError(
        f"the last {run.window.discarded_in_a_row} groups had uniform rewards (the last one "
        f"{rewards}) and were discarded (schedule.uniform_groups=discard): the task is too hard or "
        "too easy for this model, or the verifier never matches; the last completion: "
        f"{group.group.completions[-1].text[-300:]!r}"
    )
