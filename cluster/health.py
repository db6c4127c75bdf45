"""What a run's own figures say of it, in plain words: what is seen, why that may be, which option
to change. The same rules speak while a run goes on and in its report."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.config import RunConfig
from learner.algorithms import build

RECENT = 5
"""Steps that a rule looks at; one alone proves nothing."""
AT_FIRST = 5
"""Steps that the later ones are compared with."""
AGAIN = 50
"""Steps for which a warning that was given is not given again."""

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """Means over the first steps and over the most recent ones."""

    first: Row
    recent: Row
    config: RunConfig

    def now(self, name: str) -> float:
        return self.recent.get(name, 0.0)

    def began(self, name: str) -> float:
        return self.first.get(name, 0.0)


Rule = Callable[[Seen], str]
"""A warning, or nothing."""


def entropy_collapse(seen: Seen) -> str:
    now, began = seen.now("policy/entropy"), seen.began("policy/entropy")
    if began < 0.05 or now > 0.1 * began:
        return ""
    return (
        f"entropy fell from {began:.2f} to {now:.3f} per token: completions of a prompt hardly "
        "differ any more. Raise learner.algorithm.clip_high or learner.algorithm.entropy.coef, or "
        "lower learner.optim.lr"
    )


def reward_hacking(seen: Seen) -> str:
    headline, *others = seen.config.rewards.verifiers
    fell = seen.began(f"reward/{headline}") - seen.now(f"reward/{headline}")
    if fell < 0.05:
        return ""
    for other in others:
        rose = seen.now(f"reward/{other}") - seen.began(f"reward/{other}")
        if rose > 0.05:
            return (
                f"{other} rose by {rose:.2f} while {headline}, by which the run is judged, fell by "
                f"{fell:.2f}: the policy may have found that {other} is easier to please. Lower "
                f"the weight of rewards.verifiers.{other}, and look at completions"
            )
    return ""


def length_explosion(seen: Seen) -> str:
    now, began = seen.now("rollout/length"), seen.began("rollout/length")
    cut = seen.now("rollout/truncated")
    if cut > 0.2 and cut > seen.began("rollout/truncated") + 0.1:
        return (
            f"{cut:.0%} of the completions are cut at sampler.sampling.max_tokens="
            f"{seen.config.sampler.sampling.max_tokens} ({seen.began('rollout/truncated'):.0%} at "
            "first): raise it, or make length cost something with rewards.overlong_buffer"
        )
    if began and now > 2.5 * began:
        return (
            f"completions grew from {began:.0f} to {now:.0f} tokens. Where the reward does not "
            "grow with them, make length cost something with rewards.overlong_buffer"
        )
    return ""


def dead_groups(seen: Seen) -> str:
    uniform = seen.now("rollout/uniform_groups")
    if uniform < 0.5 or not build(seen.config.learner.algorithm).compares_siblings:
        return ""
    ones, zeros = seen.now("rollout/all_one_groups"), seen.now("rollout/all_zero_groups")
    if ones >= zeros:
        why, what = f"{ones:.0%} are solved by all", "easy: take harder prompts"
    else:
        why, what = f"{zeros:.0%} are solved by none", "hard: take easier prompts, or a warm start"
    return (
        f"{uniform:.0%} of the groups have the same reward throughout and teach nothing ({why}): "
        f"the task is too {what}, a larger sampler.group_size, or "
        "schedule.uniform_groups=discard"
    )


def mismatch(seen: Seen) -> str:
    gap = seen.now("policy/kl_behaviour")
    bound = 0.01 * (1 + seen.config.schedule.max_staleness)
    if gap < bound:
        return ""
    return (
        f"sampler and learner disagree by {gap:.3f} nats per token (policy/kl_behaviour; up to "
        f"{bound:.2f} is usual at schedule.max_staleness={seen.config.schedule.max_staleness}): "
        "look for another temperature, chat template or dtype; where the policy moves this fast, "
        "lower learner.optim.lr or schedule.max_staleness"
    )


def failing_verifiers(seen: Seen) -> str:
    share = _share(seen, "reward/verifier_errors")
    if share <= 0.01:
        return ""
    return (
        f"{share:.1%} of the completions could not be scored{_worst(seen, 'unscorable')} and are "
        "left out: reward_note in the tables says why; a longer rewards.timeout helps where it is "
        "time"
    )


def timeouts(seen: Seen) -> str:
    share = _share(seen, "reward/timeouts")
    if share <= 0.05:
        return ""
    return (
        f"{share:.1%} of the completions took a verifier longer than rewards.timeout="
        f"{seen.config.rewards.timeout:g} s{_worst(seen, 'timeout')} and are worth 0: raise it if "
        "they deserve better"
    )


def _worst(seen: Seen, fault: str) -> str:
    """The verifier that most of them are of, in brackets, where it is one: a scoring that hangs or
    kills its process is held against all functions that it was to call."""
    verifiers = seen.config.rewards.verifiers
    counts = {n: seen.now(f"reward/{n}/{fault}") for n in verifiers if verifiers[n].weight}
    most = max(counts.values(), default=0.0)
    found = [name for name, count in counts.items() if count == most]
    return f" (most by {found[0]})" if most and len(found) == 1 else ""


def _share(seen: Seen, count: str) -> float:
    """Of a step's completions."""
    group = max(seen.now("rollout/group_size"), 1)
    return seen.now(count) / (seen.config.schedule.groups_per_step * group)


def idle_learner(seen: Seen) -> str:
    evaluating = seen.now("time/evaluate") / max(seen.now("time/step"), 1e-9)
    idle = seen.now("idle/learner") - evaluating  # no sampler would shorten that
    if idle < 0.3:
        return ""
    remedy = (
        "more sampler.replicas, or schedule.max_staleness=1, so that sampling goes on meanwhile"
        if seen.config.schedule.max_staleness == 0
        else "more sampler.replicas; `python -m cluster plan` says how many"
    )
    return f"the learner waited {idle:.0%} of the time for groups: {remedy}"


def idle_samplers(seen: Seen) -> str:
    idle = seen.now("idle/sampler")
    if idle < 0.3:
        return ""
    remedy = (
        "schedule.max_staleness=1 lets them go on while the learner works"
        if seen.config.schedule.max_staleness == 0
        else "give the learner more ranks, or a larger schedule.max_staleness"
    )
    return f"samplers had nothing to do {idle:.0%} of the time: {remedy}"


def stragglers(seen: Seen) -> str:
    most, mean = seen.now("idle/sampler_most"), seen.now("idle/sampler")
    if most < mean + 0.3:
        return ""
    return (
        f"one sampler had nothing to do {most:.0%} of the time, all together {mean:.0%}: a few "
        "long completions hold up the rest. Raise schedule.spare_groups or schedule.max_staleness"
    )


def disk(seen: Seen) -> str:
    free = seen.recent.get("disk/free_gb", 1e9)
    if free > 5:
        return ""
    return (
        f"{free:.1f} GB are free where the run folder is: tables and checkpoints fill it. "
        "logging.keep_rollouts=false and a smaller checkpoint.keep need less"
    )


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        entropy_collapse,
        reward_hacking,
        length_explosion,
        dead_groups,
        mismatch,
        failing_verifiers,
        timeouts,
        idle_learner,
        idle_samplers,
        stragglers,
        disk,
    )
}


class Health:
    """Of a run, step by step."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._first: list[Row] = []
        self._recent: deque[Row] = deque(maxlen=RECENT)
        self._said: dict[str, int] = {}
        """By rule, at which step"""
        self._steps = 0

    def look(self, row: Row) -> list[str]:
        """What the row of a step gives reason to say."""
        self._steps += 1
        if len(self._first) < AT_FIRST:
            self._first.append(row)
        self._recent.append(row)
        if self._steps < max(RECENT, AT_FIRST):
            return []
        found = warnings(self._first, self._recent, self._config)
        due = {
            rule: text
            for rule, text in found.items()
            if self._steps - self._said.get(rule, -AGAIN) >= AGAIN
        }
        self._said |= dict.fromkeys(due, self._steps)
        return list(due.values())


def warnings(first: Sequence[Row], recent: Sequence[Row], config: RunConfig) -> dict[str, str]:
    """By rule."""
    seen = Seen(_means(first), _means(recent), config)
    # Demonstrations were sampled by nobody and are not judged.
    rules = {"disk": disk} if config.is_supervised else RULES
    return {name: text for name, rule in rules.items() if (text := rule(seen))}


def _means(rows: Sequence[Row]) -> Row:
    names = {name for row in rows for name in row}
    found = {name: [row[name] for row in rows if name in row] for name in names}
    # A phase that a step was without took it no time.
    counts = {name: len(rows) if name.startswith("time/") else len(found[name]) for name in names}
    return {name: sum(values) / counts[name] for name, values in found.items()}
