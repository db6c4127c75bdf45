"""What an evaluation says: worked out by hand, and against brute force."""

import itertools
from dataclasses import replace

import pytest
from builders import completion

from cluster.evaluate import pass_at_k, summary
from rewards import Score


def attempted(*answers: tuple[str, float | None]):
    """Completions that end in these answers, with these marks."""
    completions = tuple(completion(i + 2, text=f"so #### {a}") for i, (a, _) in enumerate(answers))
    scores = [
        Score(reward=mark, parts={"number": mark})
        if mark is not None
        else Score(reward=None, parts={}, outcome="unscorable", note="down")
        for _, mark in answers
    ]
    return completions, scores


def test_pass_at_k_is_the_share_of_draws_that_solve_it():
    for samples in range(1, 7):
        for solved, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            draws = list(itertools.combinations([i < solved for i in range(samples)], k))
            expected = sum(map(any, draws)) / len(draws)
            assert pass_at_k(samples, solved, k) == pytest.approx(expected)


def test_a_summary_by_hand():
    results = [
        attempted(("7", 1.0), ("7.0", 1.0), ("8", 0.0), ("9", 0.0)),
        attempted(("1", 0.0), ("1", 0.0), ("2", 1.0), ("", 0.0)),
        attempted(("3", 0.0), ("4", 0.0), ("5", 0.0), ("6", 0.0)),
    ]
    found = summary(results, ["number"])
    assert found["eval/number"] == pytest.approx(3 / 12)
    assert found["eval/pass_at_2"] == pytest.approx((5 / 6 + 3 / 6 + 0) / 3)
    assert found["eval/pass_at_4"] == pytest.approx(2 / 3)
    assert found["eval/maj_at_4"] == pytest.approx(1 / 3), "7 and 7.0 are one answer"
    assert found["eval/length"] == pytest.approx((2 + 3 + 4 + 5) / 4)
    for name in ("number", "pass_at_2", "pass_at_4", "maj_at_4"):
        low, high = found[f"eval/{name}_low"], found[f"eval/{name}_high"]
        assert 0 <= low <= found[f"eval/{name}"] <= high <= 1
        assert low < high


def test_one_greedy_completion_has_no_pass_at_k():
    found = summary([attempted(("7", 1.0)), attempted(("8", 0.0))], ["number"])
    assert found["eval/number"] == 0.5
    assert not [name for name in found if "_at_" in name]


def test_what_could_not_be_scored_counts_nowhere():
    found = summary([attempted(("7", 1.0), ("8", None)), attempted(("7", 1.0))], ["number"])
    assert (found["eval/number"], found["eval/verifier_errors"]) == (1.0, 1.0)
    with pytest.raises(RuntimeError, match="the first: down"):
        summary([attempted(("7", None))], ["number"])


def test_the_interval_narrows_with_more_prompts():
    def width(count: int) -> float:
        found = summary([attempted(("7", float(i % 2))) for i in range(count)], ["number"])
        return found["eval/number_high"] - found["eval/number_low"]

    assert width(400) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15), "the normal approximation"
    assert width(25) > 3 * width(400)


def test_truncated_completions_are_counted():
    [cut, whole], scores = attempted(("7", 1.0), ("8", 0.0))
    found = summary([((replace(cut, finish_reason="length"), whole), scores)], ["number"])
    assert found["eval/truncated"] == 0.5
