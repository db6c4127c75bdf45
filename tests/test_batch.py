"""Table to micro-batches: every row once, the shift right, the plan the same on every rank."""

import numpy as np
import pytest
import torch
from builders import group
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import algorithms
from learner.batch import collate, plan, read_rows
from learner.config import AlgorithmConfig
from rollout.schema import to_table

GRPO = algorithms.build(AlgorithmConfig(name="grpo"))


def rows_of(groups):
    return read_rows(to_table(groups, step=1, run="r", temperature=1.0), GRPO)


def test_the_shift_agrees_with_a_loop():
    rows = rows_of([group(0, (0.0, 1.0), lengths=(3, 6)), group(1, (0.0, 1.0, 0.5))])
    batch = collate(rows, np.arange(5), torch.device("cpu"))
    for index in range(5):
        prompt, tokens = int(rows.prompt_lengths[index]), rows.tokens[index]
        seen = 0
        for t in range(batch.tokens_BT.shape[1]):
            predicts = t + 1  # position t says how likely the token at t + 1 was
            inside = prompt <= predicts < len(tokens)
            assert bool(batch.trains_BT[index, t]) == inside
            if inside:
                assert int(batch.targets_BT[index, t]) == tokens[predicts]
                expected = rows.behaviour[index][predicts - prompt]
                assert float(batch.behaviour_BT[index, t]) == pytest.approx(float(expected))
                seen += 1
        assert seen == len(tokens) - prompt


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
    planned = plan(rows, ranks=ranks, micro_batch_tokens=budget)
    assert len({len(batches) for batches in planned}) == 1
    everything = [int(row) for batches in planned for part in batches for row in part.rows]
    assert sorted(everything) == list(range(len(lengths)))
    for batches in zip(*planned, strict=True):
        assert len({part.positions for part in batches}) == 1, "chunks differ between ranks"
        for part in batches:
            sizes = rows.lengths[part.rows]
            assert len(sizes) <= 1 or len(sizes) * sizes.max() <= budget
            trained = sum(int(rows.trainable[row].sum()) for row in part.rows)
            assert trained <= part.positions


def test_an_unscorable_row_is_in_no_denominator():
    rows = rows_of([group(0, (0.0, 1.0, None), lengths=(3, 4, 5))])
    assert (rows.counts.tokens, rows.counts.sequences) == (7, 2)
    assert rows.advantages[2] == 0.0
    planned = plan(rows, ranks=1, micro_batch_tokens=1000)
    assert [sorted(part.rows.tolist()) for part in planned[0]] == [[0, 1]]


def test_a_table_of_nothing_but_failures_still_gives_a_pass_for_every_rank():
    rows = rows_of([group(0, (None, None))])
    planned = plan(rows, ranks=2, micro_batch_tokens=100)
    assert [len(batches) for batches in planned] == [1, 1]
    batch = collate(rows, planned[1][0].rows, torch.device("cpu"))
    assert not batch.trains_BT.any()
