"""A training state that goes on with another number of ranks, or another ZeRO stage."""

from pathlib import Path

import numpy as np
import pytest
from ranks import digest, on_ranks, save_tables, train
from test_damage import tables_of

from learner.learner import Learner

pytestmark = pytest.mark.deepspeed

AT = 3


def settings(stage: int) -> dict:
    return {"optim": {"lr": 1e-3}, "algorithm": {"name": "grpo"}, "zero": {"stage": stage}}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_tables(tables_of(6), tmp_path_factory.mktemp("tables"))


def weights(learner: Learner, path: str) -> None:
    state = learner._source.full_state(keep=learner._placement.rank == 0)
    if learner._placement.rank == 0:
        np.save(path, np.concatenate([each.float().numpy().ravel() for each in state.values()]))


def undisturbed(learner: Learner, paths: list[str], folder: str) -> str:
    train(learner, paths[:AT])
    learner.save(f"{folder}/saved", AT)
    weights(learner, f"{folder}/saved.npy")
    seen = digest(learner)
    train(learner, paths[AT:])
    weights(learner, f"{folder}/end.npy")
    return seen


def go_on(learner: Learner, paths: list[str], folder: str, forget: bool) -> str:
    """From the saved state, or from its weights alone."""
    learner.load(f"{folder}/saved", AT)
    seen = digest(learner)
    if forget:
        learner._engine._ds.optimizer.optimizer.state.clear()
    train(learner, paths[AT:])
    weights(learner, f"{folder}/found.npy")
    return seen


def apart(folder: Path) -> float:
    """How far the two ends are from each other / from where they went on."""
    saved, end, found = (np.load(folder / f"{name}.npy") for name in ("saved", "end", "found"))
    return float(np.abs(end - found).mean() / np.abs(end - saved).mean())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 2), (2, 1)),
        ((3, 1), (3, 2)),
        ((2, 2), (3, 1)),
        ((0, 1), (1, 2)),
        pytest.param((1, 2), (1, 1), marks=pytest.mark.slow),
        pytest.param((2, 1), (1, 2), marks=pytest.mark.slow),
        pytest.param((3, 2), (3, 1), marks=pytest.mark.slow),
        pytest.param((0, 2), (0, 1), marks=pytest.mark.slow),
        pytest.param((3, 2), (1, 2), marks=pytest.mark.slow),
        pytest.param((1, 1), (0, 2), marks=pytest.mark.slow),
        pytest.param((3, 2), (0, 1), marks=pytest.mark.slow),
        pytest.param((0, 2), (3, 2), marks=pytest.mark.slow),
    ],
    ids=lambda each: f"stage{each[0]}x{each[1]}",
)
def test_a_state_goes_on_with_other_ranks_or_another_stage(
    before: tuple[int, int],
    after: tuple[int, int],
    tables: list[str],
    tiny: Path,
    tmp_path: Path,
):
    model = tiny / "model"
    stage, ranks = before
    common = {"model": model, "config": settings(stage), "ranks": ranks}
    [expected, *_] = on_ranks(undisturbed, tmp_path, tables, str(tmp_path), **common)
    files = sorted(path.name for path in tmp_path.rglob("*"))
    stage, ranks = after
    common = {"model": model, "config": settings(stage), "ranks": ranks}
    for seen in on_ranks(go_on, tmp_path, tables, str(tmp_path), False, **common):
        assert seen == expected, "the weights are not those that were saved"
    assert apart(tmp_path) < 1e-3
    left = {path.name for path in tmp_path.rglob("*")} - {*files, "found.npy", "result-1.json"}
    assert not left, "a resharded state is left behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(((stage, 1), (stage, 1)) for stage in (0, 1, 3)),
        ((0, 2), (0, 1)),
        ((2, 2), (2, 1)),
        ((0, 1), (2, 1)),
        ((3, 1), (0, 1)),
        ((1, 1), (3, 1)),
    ],
    ids=str,
)
def test_a_state_in_bfloat16_goes_on(
    before: tuple[int, int], after: tuple[int, int], tables: list[str], tiny: Path, tmp_path: Path
):
    common = {"model": tiny / "model", "dtype": "bfloat16"}
    stage, ranks = before
    [expected, *_] = on_ranks(
        undisturbed, tmp_path, tables, str(tmp_path), config=settings(stage), ranks=ranks, **common
    )
    stage, ranks = after
    [seen, *_] = on_ranks(
        go_on, tmp_path, tables, str(tmp_path), False, config=settings(stage), ranks=ranks, **common
    )
    assert seen == expected
    assert apart(tmp_path) < (1e-9 if before == after else 0.3)  # one bit of bfloat16 is a lot


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 3), (3, 0), (0, 3), (1, 3)])
@pytest.mark.parametrize("what", ["adapters", "critic"])
def test_adapters_and_a_critic_go_on_with_other_ranks(
    what: str, before: int, after: int, tables: list[str], tiny: Path, tmp_path: Path
):
    algorithm = {"name": "ppo" if what == "critic" else "grpo"}
    then, now = ({**settings(stage), "algorithm": algorithm} for stage in (before, after))
    common = {"model": tiny / "model", "lora": 4 * (what == "adapters")}
    arguments = (tables, str(tmp_path))
    [expected, *_] = on_ranks(undisturbed, tmp_path, *arguments, config=then, ranks=2, **common)
    [seen] = on_ranks(go_on, tmp_path, *arguments, False, config=now, ranks=1, **common)
    assert seen == expected
    assert apart(tmp_path) < 1e-2
    assert not list(tmp_path.rglob("resharded-*"))


@pytest.mark.slow
def test_a_stage_three_of_many_groups_counts_its_steps_once(
    tables: list[str], tiny: Path, tmp_path: Path
):
    """DeepSpeed gives all groups the same counter, and each of them counts."""
    many = {**settings(3), "deepspeed": {"zero_optimization": {"sub_group_size": 50_000}}}
    common = {"model": tiny / "model", "ranks": 1}
    arguments = (tables, str(tmp_path))
    [expected] = on_ranks(undisturbed, tmp_path, *arguments, config=settings(2), **common)
    [seen] = on_ranks(go_on, tmp_path, *arguments, False, config=many, **common)
    assert seen == expected
    assert apart(tmp_path) < 1e-3


def test_moments_matter_to_that_measure(tables: list[str], tiny: Path, tmp_path: Path):
    common = {"model": tiny / "model", "config": settings(1), "ranks": 1}
    on_ranks(undisturbed, tmp_path, tables, str(tmp_path), **common)
    on_ranks(go_on, tmp_path, tables, str(tmp_path), True, **common)
    assert apart(tmp_path) > 0.1, "Adam without its moments would pass for Adam with them"
