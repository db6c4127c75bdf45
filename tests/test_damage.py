"""What is no number, and what is not what was sent, is trained on by nobody."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import completion, group
from ranks import digest, on_ranks, save_tables, train

from cluster.scoring import trainable
from learner.learner import Learner
from rewards import Score
from rollout.schema import Damaged, Sealed, read_table, seal, to_groups, to_table

SETTINGS = {"optim": {"lr": 1e-3, "warmup_steps": 2}, "algorithm": {"name": "grpo"}}


def tables_of(count: int) -> list[pa.Table]:
    return [
        to_table(
            [group(4 * step + n, (0.0, 1.0, 0.5, 1.0)) for n in range(4)],
            step=step,
            run="t",
            temperature=1.0,
        )
        for step in range(count)
    ]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_tables(tables_of(5), tmp_path_factory.mktemp("tables"))


# -- numbers that are none -------------------------------------------------------------------------


def spoil(learner: Learner, what: str) -> None:
    """The next update, on the last rank alone."""
    if learner._placement.rank + 1 < learner._placement.ranks:
        return
    if what == "gradient":
        first = next(learner._model.parameters())
        hook = first.register_hook(lambda gradient: (hook.remove(), gradient * math.nan)[1])
        return
    plain = learner._loss.policy

    def policy(*args):
        learner._loss.policy = plain
        return plain(*args) * (math.inf if what == "inf" else math.nan)

    learner._loss.policy = policy


def second_step_is(learner: Learner, paths: list[str], what: str) -> list:
    """The digest of the weights behind each of three steps, and what was skipped."""
    digests, skipped = [], []
    for number, path in enumerate(paths):
        if number == 1 and what == "absent":
            learner.version += 1
        else:
            if number == 1:
                spoil(learner, what)
            metrics = learner.update(read_table(Path(path))).metrics
            assert all(map(math.isfinite, metrics.values())), metrics
            skipped.append(metrics["learner/skipped_steps"])
        digests.append(digest(learner))
    return [digests, skipped, learner.version]


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "stage", [0, 3, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2))]
)
def test_a_step_that_is_not_finite_on_one_rank_moves_nothing_on_any(
    stage: int, tables: list[str], tiny: Path, tmp_path: Path
):
    common = {"ranks": 2, "config": {**SETTINGS, "zero": {"stage": stage}}, "model": tiny / "model"}
    [expected, other] = on_ranks(second_step_is, tmp_path, tables[:3], "absent", **common)
    assert expected == other
    for what in ("nan", "inf", "gradient"):
        found = on_ranks(second_step_is, tmp_path, tables[:3], what, **common)
        for digests, skipped, version in found:
            assert skipped == [0.0, 1.0, 0.0] and version == 3, what
            assert digests == expected[0], f"{what}: the skipped step left a trace"


def one_of_two_is(learner: Learner, path: str) -> list:
    """Two optimizer steps on a table, the first of them spoilt; and one on the next."""
    spoil(learner, "nan")
    first = learner.update(read_table(Path(path))).metrics
    second = learner.update(read_table(Path(path))).metrics
    return [first, second, learner._steering.kl_coef]


@pytest.mark.deepspeed
def test_coefficients_move_by_what_was_applied_only(tables: list[str], tiny: Path, tmp_path: Path):
    kl = {"coef": 0.1, "target": 0.01, "horizon": 100}
    config = {**SETTINGS, "algorithm": {"name": "grpo", "kl": kl, "epochs": 2}}
    [[first, second, coef]] = on_ranks(
        one_of_two_is, tmp_path, tables[0], config=config, model=tiny / "model"
    )
    assert first["learner/skipped_steps"] == 1.0 and second["learner/skipped_steps"] == 0.0
    for metrics in (first, second):
        assert all(map(math.isfinite, metrics.values())), metrics
        assert metrics["policy/kl_reference"] >= 0 and metrics["learner/loss"]
    assert 0 < coef < 1


def poisoned(learner: Learner, paths: list[str], good: int) -> list:
    """Weights that are NaN from a step on; the version that it ends at, and why."""
    train(learner, paths[:good])
    next(learner._model.parameters()).data[:] = math.nan
    with pytest.raises(RuntimeError) as error:
        train(learner, paths[good:])
    return [learner.version, str(error.value)]


@pytest.mark.deepspeed
def test_more_steps_in_a_row_than_may_be_skipped_end_the_run(
    tables: list[str], tiny: Path, tmp_path: Path
):
    config = {**SETTINGS, "max_skipped_steps": 2}
    [[version, said]] = on_ranks(poisoned, tmp_path, tables, 1, config=config, model=tiny / "model")
    assert version == 3, "two steps are skipped, the third ends it"
    assert "in step 4 the loss is nan" in said
    assert "3 optimizer steps in a row are not finite (learner.max_skipped_steps=2)" in said


def test_a_completion_without_a_finite_logprob_is_unscorable_and_trains_nothing():
    sick = completion(4)
    logprobs = sick.logprobs.copy()
    logprobs[2] = np.nan
    sick = replace(sick, logprobs=logprobs)
    masked = replace(sick, trainable=np.array([True, True, False, True]))
    completions = (completion(4), sick, masked)
    good = Score(reward=1.0, parts={"number": 1.0}, steps=((1, 1.0),))
    scores = trainable(completions, [good] * len(completions))
    assert [score.outcome for score in scores] == ["scored", "unscorable", "scored"]
    assert scores[1].reward is None and "not finite" in scores[1].note
    assert scores[1].parts == good.parts, "what the verifiers said is on the record"

    inner = replace(group(0, (0.0, 0.0, 0.0)).group, completions=completions)
    scored = replace(group(0, (0.0, 0.0, 0.0)), group=inner, scores=tuple(scores))
    table = to_table([scored], step=1, run="t", temperature=1.0)
    [back] = to_groups(table)
    assert np.isnan(back.group.completions[1].logprobs[2]), "the fact is on the record"
    from learner.batch import read_rows

    assert read_rows(table).mask_NT.sum(axis=1).tolist() == [4, 0, 3]


# -- tables that are not what was sent -------------------------------------------------------------


def flipped(sealed: Sealed, at: int, bit: int = 0) -> Sealed:
    content = bytearray(sealed.content)
    content[at] ^= 1 << bit
    return replace(sealed, content=pa.py_buffer(content))


def test_a_byte_that_changed_anywhere_in_a_table_is_found():
    sealed = seal(tables_of(1)[0])
    assert sealed.open().equals(tables_of(1)[0])
    size, rng = sealed.content.size, np.random.default_rng(1)
    for at in rng.integers(0, size, 200):
        with pytest.raises(Damaged, match="does not match its digest"):
            flipped(sealed, int(at), bit=int(rng.integers(8))).open()
    for length in (0, 1, size // 2, size - 1):
        with pytest.raises(Damaged):
            replace(sealed, content=sealed.content.slice(0, length)).open()


def test_a_whole_table_of_another_schema_is_refused_by_its_column():
    table = tables_of(1)[0]
    with pytest.raises(ValueError, match="no column 'reward'"):
        seal(table.drop_columns(["reward"])).open()
    at = table.schema.get_field_index("policy_versions")
    wide = table["policy_versions"].cast(pa.list_(pa.int64()))
    other = table.set_column(at, "policy_versions", wide)
    with pytest.raises(ValueError, match="column 'policy_versions' is list<"):
        seal(other).open()


def open_damaged(learner: Learner, path: str) -> list[str]:
    """What each rank says of a table that one of them has otherwise; then a good one."""
    sealed = seal(read_table(Path(path)))
    mine = sealed
    if learner._placement.rank == 1:
        mine = flipped(sealed, sealed.content.size // 2)
    with pytest.raises(Damaged) as error:
        learner.open(mine)
    learner.update(learner.open(sealed))
    return [str(error.value), digest(learner)]


@pytest.mark.deepspeed
def test_a_table_that_is_damaged_on_one_rank_is_refused_by_all(
    tables: list[str], tiny: Path, tmp_path: Path
):
    [(said, mine), (other, theirs)] = on_ranks(
        open_damaged, tmp_path, tables[0], ranks=2, config=SETTINGS, model=tiny / "model"
    )
    assert said == "another rank's copy of the table is damaged"
    assert "does not match its digest" in other
    assert mine == theirs
