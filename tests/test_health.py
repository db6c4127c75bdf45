"""Warnings in plain words: each rule speaks of the run that it is for and of no other."""

import re

import pytest

from cluster import health
from cluster.config import RunConfig, options

CALM = {
    "policy/entropy": 1.0,
    "policy/kl_behaviour": 0.0005,
    "reward/mean": 0.5,
    "reward/number": 0.5,
    "reward/tags": 0.5,
    "reward/verifier_errors": 0.0,
    "reward/timeouts": 0.0,
    "rollout/length": 100.0,
    "rollout/truncated": 0.02,
    "rollout/group_size": 8.0,
    "rollout/uniform_groups": 0.2,
    "rollout/all_one_groups": 0.1,
    "rollout/all_zero_groups": 0.1,
    "idle/learner": 0.1,
    "idle/sampler": 0.1,
    "idle/sampler_most": 0.2,
    "disk/free_gb": 100.0,
}
CONFIG = RunConfig.model_validate({"rewards": {"verifiers": {"number": 1.0, "tags": 0.1}}})

ILL = {
    "entropy_collapse": {"policy/entropy": 0.05},
    "reward_hacking": {"reward/number": 0.3, "reward/tags": 0.9},
    "length_explosion": {"rollout/length": 300.0},
    "dead_groups": {"rollout/uniform_groups": 0.62, "rollout/all_one_groups": 0.6},
    "mismatch": {"policy/kl_behaviour": 0.03},
    "failing_verifiers": {"reward/verifier_errors": 40.0},
    "timeouts": {"reward/timeouts": 60.0},
    "idle_learner": {"idle/learner": 0.5},
    "idle_samplers": {"idle/sampler": 0.5, "idle/sampler_most": 0.55},
    "stragglers": {"idle/sampler": 0.2, "idle/sampler_most": 0.7},
    "disk": {"disk/free_gb": 2.0},
}


def said(later: dict[str, float], config: RunConfig = CONFIG) -> dict[str, str]:
    return health.warnings([CALM] * 5, [{**CALM, **later}] * 5, config)


def test_a_learner_that_waits_for_evaluations_is_not_short_of_samplers():
    waits = {"idle/learner": 0.5, "time/step": 10.0, "time/evaluate": 4.0}
    assert said(waits) == {} and "idle_learner" in said({**waits, "time/evaluate": 0.5})


def test_one_evaluation_among_the_last_steps_does_not_hide_an_idle_learner():
    calm = {"idle/learner": 0.6, "time/step": 20.0}
    late = [{**CALM, **calm}] * 4 + [{**CALM, **calm, "time/step": 40.0, "time/evaluate": 20.0}]
    assert "idle_learner" in health.warnings([CALM] * 5, late, CONFIG)


def test_the_verifier_that_fails_most_is_named():
    failing = {"reward/verifier_errors": 40.0, "reward/tags/unscorable": 40.0}
    assert "(most by tags)" in said(failing)["failing_verifiers"]
    both = {**failing, "reward/number/unscorable": 40.0}  # a child that died was asked for both
    assert "most by" not in said(both)["failing_verifiers"]


def test_a_calm_run_gives_no_reason_to_speak():
    assert said({}) == {}


def test_every_rule_has_its_case():
    assert set(ILL) == set(health.RULES)


@pytest.mark.parametrize("rule", ILL)
def test_what_is_ill_is_named_and_nothing_else(rule: str):
    assert list(said(ILL[rule])) == [rule]


def test_every_option_that_a_warning_names_is_there():
    texts = [text for later in ILL.values() for text in said(later).values()]
    cut = {"rollout/truncated": 0.5}
    late = CONFIG.model_copy(
        update={"schedule": CONFIG.schedule.model_copy(update={"max_staleness": 2})}
    )
    texts += [
        *said(cut).values(),
        *said({**ILL["idle_learner"], "idle/sampler": 0.5}, late).values(),
    ]
    branch = "|".join(RunConfig.model_fields)
    named = {
        match for text in texts for match in re.findall(rf"\b(?:{branch})\.[a-z_.]+[a-z]", text)
    }
    known = {*options(), "rewards.verifiers.tags"}
    assert len(named) > 12 and not named - known, named - known


def test_dead_groups_say_whether_the_task_is_too_easy_or_too_hard():
    easy = said({"rollout/uniform_groups": 0.62, "rollout/all_one_groups": 0.6})["dead_groups"]
    hard = said({"rollout/uniform_groups": 0.62, "rollout/all_zero_groups": 0.6})["dead_groups"]
    assert "62% of the groups" in easy and "too easy" in easy and "too hard" in hard


def test_a_warning_is_given_once_and_again_after_fifty_steps():
    watch, told = health.Health(CONFIG), []
    for step in range(1, 121):
        row = {**CALM, **ILL["mismatch"]} if step > 5 else CALM
        told += [step for _ in watch.look(row)]
    # the mean of five steps crosses the bound with the second bad one
    assert told == [7, 57, 107]
