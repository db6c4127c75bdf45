"""Table to micro-batches: every row once, the shift right, the plan the same on every rank."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import Rows, Slice, check_staleness, collate, minibatches, plan, read_rows
from rollout import ScoredGroup
from rollout.schema import to_table

CPU = torch.device("cpu")


def rows_of(groups, **options) -> Rows:
    return read_rows(to_table(groups, step=1, run="r", temperature=1.0), **options)


def planned_of(rows: Rows, *, ranks: int, budget: int) -> list[list[Slice]]:
    everyone = np.arange(len(rows.tokens))
    return plan(
        rows.trains_NT.sum(axis=1), rows.lengths_N, everyone, ranks=ranks, micro_batch_tokens=budget
    )


def versioned(scored: ScoredGroup, *versions: list[int]) -> ScoredGroup:
    completions = tuple(
        replace(completion, versions=np.array(given, dtype=np.int32))
        for completion, given in zip(scored.group.completions, versions, strict=True)
    )
    return replace(scored, group=replace(scored.group, completions=completions))


def test_tokens_behind_a_seam():
    """Of the version in training, in completions that an older one began."""
    three = group(0, (0.0, 1.0, None), lengths=(3, 4, 2))
    rows = rows_of([versioned(three, [4, 4, 4], [3, 4, 4, 5], [3, 4])])
    assert rows.behind_seam(4).tolist() == [[False] * 4, [False, True, True, False], [False] * 4]
    assert rows.behind_seam(5).tolist() == [[False] * 4, [False] * 3 + [True], [False] * 4]
    assert not rows.behind_seam(3).any()


def test_the_shift_agrees_with_a_loop():
    rows = rows_of([group(0, (0.0, 1.0), lengths=(3, 6)), group(1, (0.0, 1.0, 0.5))])
    batch = collate(rows, rows.mask_NT, np.arange(5), CPU)
    behaviour_BT = batch.gather(rows.behaviour_NT)
    for index in range(5):
        prompt, tokens = int(rows.prompt_lengths_N[index]), rows.tokens[index]
        seen = 0
        for t in range(batch.tokens_BT.shape[1]):
            predicts = t + 1  # position t says how likely the token at t + 1 was
            inside = prompt <= predicts < len(tokens)
            assert bool(batch.trains_BT[index, t]) == inside
            if inside:
                assert int(batch.targets_BT[index, t]) == tokens[predicts]
                expected = rows.behaviour_NT[index, predicts - prompt]
                assert float(behaviour_BT[index, t]) == float(expected)
                seen += 1
        assert seen == len(tokens) - prompt


def test_what_is_gathered_can_be_scattered_back():
    rows = rows_of([group(0, (0.0, 1.0), lengths=(3, 6)), group(1, (0.0, 1.0, 0.5))])
    back = np.zeros_like(rows.behaviour_NT)
    for chosen in ([3, 0], [4, 1, 2]):
        batch = collate(rows, rows.mask_NT, chosen, CPU)
        batch.scatter(batch.gather(rows.behaviour_NT), back)
    np.testing.assert_array_equal(back, rows.behaviour_NT)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    ranks=st.integers(1, 5),
    budget=st.integers(8, 200),
)
def test_every_row_is_planned_once_and_every_rank_does_as_many_passes(
    lengths: list[int], ranks: int, budget: int
):
    rows = rows_of([group(i, (1.0,), lengths=(n,)) for i, n in enumerate(lengths)])
    planned = planned_of(rows, ranks=ranks, budget=budget)
    assert len({len(batches) for batches in planned}) == 1
    everything = [int(row) for batches in planned for part in batches for row in part.rows]
    assert sorted(everything) == list(range(len(lengths)))
    for batches in zip(*planned, strict=True):
        assert len({part.positions for part in batches}) == 1, "chunks differ between ranks"
        for part in batches:
            sizes = rows.lengths_N[part.rows]
            assert len(sizes) <= 1 or len(sizes) * sizes.max() <= budget
            trained = int(rows.trains_NT[part.rows].sum())
            assert trained <= part.positions


def test_an_unscorable_row_is_in_no_micro_batch():
    rows = rows_of([group(0, (0.0, 1.0, None), lengths=(3, 4, 5))])
    assert rows.mask_NT.sum(axis=1).tolist() == [3, 4, 0]
    planned = planned_of(rows, ranks=1, budget=1000)
    assert [sorted(part.rows.tolist()) for part in planned[0]] == [[0, 1]]


def test_a_table_of_nothing_but_failures_still_gives_a_pass_for_every_rank():
    rows = rows_of([group(0, (None, None))])
    planned = planned_of(rows, ranks=2, budget=100)
    assert [len(batches) for batches in planned] == [1, 1]
    batch = collate(rows, rows.mask_NT, planned[1][0].rows, CPU)
    assert not batch.trains_BT.any()


def test_a_truncated_completion_may_count_in_the_baseline_alone():
    whole = group(0, (0.0, 1.0), lengths=(3, 4))
    first, second = whole.group.completions
    cut = replace(first, finish_reason="length")
    scored = replace(whole, group=replace(whole.group, completions=(cut, second)))
    assert rows_of([scored]).trains_NT.sum(axis=1).tolist() == [3, 4]
    rows = rows_of([scored], mask_truncated=True)
    assert rows.trains_NT.sum(axis=1).tolist() == [0, 4]
    assert rows.mask_NT.sum(axis=1).tolist() == [3, 4], "it pays KL in the reward like any other"
    assert rows.rewards_N.tolist() == [0.0, 1.0]


def test_a_row_with_a_logprob_that_is_not_finite_is_left_out_and_counted():
    table = to_table([group(0, (0.0, 1.0), lengths=(2, 2))], step=1, run="r", temperature=1.0)
    at, field = table.schema.get_field_index("behaviour_logprobs"), "behaviour_logprobs"
    bad = pa.array([[-1.0, float("-inf")], [-1.0, -1.0]], type=table.schema.field(field).type)
    rows = read_rows(table.set_column(at, table.schema.field(field), bad))
    assert (rows.left_out, rows.trains_NT.sum(axis=1).tolist()) == (1, [0, 2])
    assert np.isnan(rows.rewards_N[0]), "it plays no part in the baseline"
    assert np.isfinite(rows.behaviour_NT).all()


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=30), count=st.integers(1, 8))
def test_minibatches_hold_each_row_once_and_split_no_group(groups: list[int], count: int):
    ids = np.array(groups)
    parts = minibatches(ids, count, seed=(3, 1))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(ids)))
    assert len(parts) == min(count, len(set(groups)))
    for part in parts:
        assert len(part) and not set(ids[part]) & set(np.delete(ids, part))
    again = minibatches(ids, count, seed=(3, 1))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_token_older_than_the_bound_is_named_before_it_is_trained():
    def table(versions: list[int], trainable: list[bool] | None = None):
        scored = group(3, (0.0, 1.0), version=6, lengths=(4, 5))
        first, second = scored.group.completions
        second = replace(
            second,
            versions=np.array(versions, dtype=np.int32),
            trainable=np.array(trainable or [True] * 5),
        )
        inner = replace(scored.group, completions=(first, second))
        groups = [group(1, version=5), replace(scored, group=inner)]
        return to_table(groups, step=8, run="r", temperature=1.0)

    check_staleness(table([5, 5, 6, 7, 7]), version=7, bound=2)
    check_staleness(table([0, 0, 5, 5, 6], [False, False, True, True, True]), version=7, bound=2)
    with pytest.raises(RuntimeError, match="tokens 1 to 2 of group 3, sample 1, which version 4"):
        check_staleness(table([5, 4, 4, 6, 6]), version=7, bound=2)
    with pytest.raises(RuntimeError, match="tokens 4 to 4 of group 3, sample 1, which version 8"):
        check_staleness(table([5, 5, 5, 6, 8]), version=7, bound=2)
    with pytest.raises(RuntimeError, match="of group 1, sample 0, which version 5"):
        check_staleness(table([6] * 5), version=6, bound=0)
