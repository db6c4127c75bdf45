"""Steps in characters to steps in tokens; and what is asked of groups before they are trained."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import group, judged
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.loop import check
from learner.algorithms import build
from learner.config import AlgorithmConfig, LearnerConfig
from rewards import RewardConfig, Score
from rollout import Completion
from rollout.steps import step_tokens

TEXT = "<think>7+3=10\n10*2=20</think><answer>20</answer>"


def completion(tokenizer: Any, text: str) -> Completion:
    ids = np.array(tokenizer(f"{text}<|end|>", add_special_tokens=False)["input_ids"], np.int32)
    return Completion(
        token_ids=ids,
        trainable=np.ones(len(ids), dtype=np.bool_),
        logprobs=np.zeros(len(ids), dtype=np.float32),
        versions=np.zeros(len(ids), dtype=np.int32),
        text=text,
        finish_reason="stop",
    )


def test_a_step_ends_with_the_token_that_completes_it(tokenizer: Any):
    whole = completion(tokenizer, TEXT)
    ends = (TEXT.index("\n") + 1, TEXT.index("</think>"))
    score = Score(reward=1.0, parts={}, steps=tuple((end, 1.0) for end in ends))
    for (count, _), end in zip(step_tokens(tokenizer, whole, score), ends, strict=True):
        assert tokenizer.decode(whole.token_ids[:count], skip_special_tokens=True) == TEXT[:end]
        assert len(tokenizer.decode(whole.token_ids[: count - 1])) < end


def test_the_last_step_takes_the_end_of_turn_token_with_it(tokenizer: Any):
    whole = completion(tokenizer, TEXT)
    score = Score(reward=1.0, parts={}, steps=((len(TEXT) - 1, 0.5), (len(TEXT), 1.0)))
    last = len(whole.token_ids)
    assert step_tokens(tokenizer, whole, score) == ((last - 1, 0.5), (last, 1.0))


def test_steps_beyond_the_text_belong_to_the_last_token_and_add_up(tokenizer: Any):
    whole = completion(tokenizer, "7+3=10")
    score = Score(reward=1.0, parts={}, steps=((500, 0.25), (900, 0.5)))
    assert step_tokens(tokenizer, whole, score) == ((len(whole.token_ids), 0.75),)
    assert step_tokens(tokenizer, whole, Score(reward=1.0, parts={})) == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_ends_are_in_order_and_within_the_completion(tokenizer: Any, ends: list[int]):
    whole = completion(tokenizer, TEXT)
    score = Score(reward=1.0, parts={}, steps=tuple((end, 1.0) for end in sorted(ends)))
    found = step_tokens(tokenizer, whole, score)
    counts = [count for count, _ in found]
    assert counts == sorted(set(counts))
    assert all(1 <= count <= len(whole.token_ids) for count in counts)
    assert sum(reward for _, reward in found) == len(ends)


def run_of(name: str) -> Any:
    algorithm = AlgorithmConfig(name=name)
    config = SimpleNamespace(
        learner=LearnerConfig(algorithm=algorithm), rewards=RewardConfig(verifiers={"number": 1.0})
    )
    return SimpleNamespace(algorithm=build(algorithm), config=config, resumed_from=0)


def test_a_row_that_learns_from_steps_refuses_groups_without_any():
    with pytest.raises(RuntimeError, match=r"grpo_process learns from .*none of number returned"):
        check(run_of("grpo_process"), [group(0), group(1)], version=0)


def test_a_row_that_compares_with_a_greedy_completion_refuses_groups_without_one():
    with pytest.raises(RuntimeError, match="remax compares with the greedy completion"):
        check(run_of("remax"), [judged(group(0))], version=0)
