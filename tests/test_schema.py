"""Groups to table to groups; whatever is misaligned is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import group, judged

from rollout import ScoredGroup
from rollout.schema import ROLLOUTS, read_table, to_groups, to_table, write_table


def table(groups: list[ScoredGroup]) -> pa.Table:
    return to_table(groups, step=3, run="r", temperature=0.7)


def test_a_table_and_its_groups_are_the_same_thing():
    first = table([group(0), group(1, (0.1, None, 0.7)), group(7, (1.2,))])
    assert first.schema.metadata[b"temperature"] == b"0.7"
    assert table(to_groups(first)).equals(first)
    assert first["reward"].to_pylist() == [0.0, 1.0, 0.1, None, 0.7, 1.2]


def test_judged_steps_and_the_greedy_reward_are_columns():
    scored = judged(group(3, (0.2, 1.0), lengths=(5, 1)), greedy=0.7)
    found = table([scored, judged(group(4))])
    assert to_groups(found)[0].steps == scored.steps
    assert found["greedy_reward"].to_pylist() == [0.7, 0.7, None, None]
    assert table(to_groups(found)).equals(found)


def grown(scored: ScoredGroup, *rounds: int) -> ScoredGroup:
    return replace(scored, group=replace(scored.group, rounds=rounds))


def test_the_round_of_a_completion_is_a_column():
    scored = grown(group(3, (0.0, 0.0, 1.0, 0.0)), 0, 0, 1, 1)
    found = table([scored, group(4)])
    assert found["round"].to_pylist() == [0, 0, 1, 1, 0, 0]
    assert table(to_groups(found)).equals(found)
    with pytest.raises(ValueError, match=r"group 3 .*: 4 completions but 3 rounds"):
        table([grown(scored, 0, 0, 1)])


def test_a_table_of_the_schema_before_is_read(tmp_path: Path):
    new = table([group(0), group(1)])
    old = new.drop_columns("round").replace_schema_metadata(
        {**new.schema.metadata, b"grpo.schema": b"3"}
    )
    write_table(old, tmp_path / "000001.arrow")
    assert read_table(tmp_path / "000001.arrow").equals(new, check_metadata=True)


def test_a_step_that_ends_outside_its_completion_is_refused():
    scored = replace(group(3, (0.2, 1.0), lengths=(5, 1)), steps=((), ((2, 1.0),)))
    with pytest.raises(ValueError, match=r"group 3 .*, sample 1: column step_rewards"):
        table([scored])


def test_an_empty_table_has_the_schema():
    assert table([]).schema.equals(ROLLOUTS)


def test_a_table_survives_the_disk(tmp_path: Path):
    written = table([group(0), group(1)])
    write_table(written, tmp_path / "000001.arrow")
    assert read_table(tmp_path / "000001.arrow").equals(written)
    assert [p.name for p in tmp_path.iterdir()] == ["000001.arrow"]


def broken(**changes) -> ScoredGroup:
    scored = group(5)
    first, *rest = scored.group.completions
    inner = replace(scored.group, completions=(replace(first, **changes), *rest))
    return replace(scored, group=inner)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprobs": np.zeros(1, np.float32)}, "column behaviour_logprobs has 1 entries"),
        ({"trainable": np.ones(9, np.bool_)}, "column trainable has 9 entries"),
        ({"versions": np.zeros(0, np.int32)}, "column policy_versions has 0 entries"),
        ({"trainable": np.zeros(4, np.bool_)}, "no trainable token"),
        (
            {"logprobs": np.array([0, 0, np.nan, 0], np.float32)},
            "column behaviour_logprobs is nan at token 2",
        ),
    ],
)
def test_misaligned_columns_are_refused(changes: dict, says: str):
    bad = broken(**changes)
    length = len(bad.group.completions[0].token_ids)
    assert length == 4
    with pytest.raises(ValueError, match=r"group 5 \(prompt test/5\), sample 0") as error:
        table([group(4), bad])
    assert says in str(error.value)


def test_a_logprob_that_is_not_finite_is_fine_where_nothing_trains():
    mask = np.array([True, True, False, True])
    logprobs = np.array([0, 0, -np.inf, 0], np.float32)
    assert table([broken(logprobs=logprobs, trainable=mask)]).num_rows == 2


def test_a_missing_score_is_refused():
    scored = group(5)
    with pytest.raises(ValueError, match="2 completions but 1 scores"):
        table([replace(scored, scores=scored.scores[:1])])


def test_another_schema_is_refused(tmp_path: Path):
    good = table([group(0)])
    with pytest.raises(ValueError, match="no column 'reward'"):
        to_groups(good.drop_columns(["reward"]))
    index = good.schema.get_field_index("sample_id")
    wide = good.set_column(index, "sample_id", good["sample_id"].cast(pa.int64()))
    with pytest.raises(ValueError, match="column 'sample_id' is int64, expected int32"):
        to_groups(wide)
    (tmp_path / "x.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(ValueError, match="is not an Arrow file"):
        read_table(tmp_path / "x.arrow")
