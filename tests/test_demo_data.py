"""The demo's task: problems that add up, a split by numbers, a tokenizer that loses nothing."""

import random
import re
from collections import Counter
from pathlib import Path

from recipes.demo import LARGEST, demonstrate, flash_cards, make_problem, problems
from rewards.answers import number_in_answer
from rewards.formats import think_number


def test_problems_are_what_they_say():
    rng = random.Random(0)
    lengths = Counter()
    for _ in range(2_000):
        problem = make_problem(rng)
        lengths[len(problem.steps)] += 1
        value = problem.steps[0][0]
        for left, operator, right, result in problem.steps:
            assert left == value
            assert result == eval(f"{left}{operator.replace('/', '//')}{right}")
            assert 0 <= result <= LARGEST
            value = result
        assert f"has {problem.steps[0][0]} " in problem.text
    assert set(lengths) == {2, 3, 4, 5}


def test_the_held_out_split_is_by_numbers_alone():
    rng = random.Random(1)

    def keys(held_out: bool) -> set:
        stream = problems(rng, held_out=held_out)
        return {next(stream).steps for _ in range(1_500)}

    assert not keys(True) & keys(False)
    share = sum(make_problem(rng).is_held_out for _ in range(5_000)) / 5_000
    assert 0.07 < share < 0.13


def test_demonstrations_are_of_mixed_quality():
    rng = random.Random(2)
    traces = [(p := make_problem(rng), demonstrate(p, rng)) for _ in range(3_000)]
    right = sum(number_in_answer(text, str(p.answer)) for p, text in traces) / len(traces)
    formed = sum(think_number(text, "") for _, text in traces) / len(traces)
    lazy = sum(text.startswith("<think></think>") for _, text in traces) / len(traces)
    assert 0.25 < right < 0.45
    assert 0.75 < formed < 0.85
    assert 0.40 < lazy < 0.65


def test_flash_cards_train_on_results_only():
    for text, trains in flash_cards(random.Random(3), 50):
        assert re.fullmatch(r"\d+" if trains else r"\n?\d+[-+*/]\d=", text)


def test_the_tokenizer_gives_numbers_and_tags_one_token_each(tiny: Path, tokenizer):
    for text in ("0", "7", "20", "99", "<think>", "</answer>", "<|end|>"):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    sample = "<|user|>Zoe has 12 shells, doubles them. How many?<|assistant|><think>12*2=24\n"
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert tokenizer.eos_token == "<|end|>"
