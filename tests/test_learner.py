"""The learner on real DeepSpeed ranks over gloo: the same numbers however the work is split."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import group
from ranks import digest, on_ranks, save_tables, train, train_and_digest

from rollout.schema import to_table

pytestmark = pytest.mark.deepspeed


def make_tables(count: int, *, groups: int = 4, temperature: float = 1.0) -> list[pa.Table]:
    """Tables of ragged completions of random tokens, with rewards of every kind."""
    rng = np.random.default_rng(5)
    choices = [0.0, 0.2, 1.0, 1.2]
    tables = []
    for step in range(count):
        scored = []
        for ticket in range(step * groups, (step + 1) * groups):
            rewards = [float(r) for r in rng.choice(choices, 4)]
            lengths = tuple(int(n) for n in rng.integers(1, 30, 4))
            scored.append(group(ticket, tuple(rewards), lengths=lengths))
        tables.append(to_table(scored, step=step, run="t", temperature=temperature))
    return tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_tables(make_tables(20), tmp_path_factory.mktemp("tables"))


SETTINGS = {"optim": {"lr": 1e-3}, "algorithm": {"name": "grpo"}}


@pytest.fixture(scope="module")
def alone(tables: list[str], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of one rank without ZeRO, all rows in one micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    settings = {**SETTINGS, "zero": {"stage": 0}, "micro_batch_tokens": 100_000}
    [(losses, _)] = on_ranks(
        train_and_digest, folder, tables, config=settings, model=tiny / "model"
    )
    assert len(set(losses)) == len(losses) == 20
    return losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_give_the_loss_curve_of_one(
    stage: int, alone: list[float], tables: list[str], tiny: Path, tmp_path: Path
):
    settings = {
        **SETTINGS,
        "zero": {"stage": stage},
        "micro_batch_tokens": 150,  # several passes per rank, uneven between ranks
        "logits_chunk": 20_000,  # several chunks of logits per pass
    }
    if stage == 3:  # gather every parameter, however small
        settings["deepspeed"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    results = on_ranks(
        train_and_digest, tmp_path, tables, ranks=2, config=settings, model=tiny / "model"
    )
    (losses, first), (other, second) = results
    assert losses == other, "ranks report different losses"
    assert first == second, "ranks hold different weights"
    np.testing.assert_allclose(losses, alone, atol=1e-4, rtol=0)


def test_the_same_tables_give_bitwise_the_same_weights(
    tables: list[str], tiny: Path, tmp_path: Path
):
    settings = {**SETTINGS, "zero": {"stage": 2}}
    runs = [
        on_ranks(
            train_and_digest, tmp_path, tables[:6], ranks=2, config=settings, model=tiny / "model"
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def save_then_go_on(learner, paths: list[str], folder: str, at: int) -> str:
    train(learner, paths[:at])
    learner.save(folder)
    train(learner, paths[at:])
    return digest(learner)


def load_then_go_on(learner, paths: list[str], folder: str, at: int) -> str:
    learner.load(folder, at)
    train(learner, paths[at:])
    return digest(learner)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_learner_is_bitwise_the_undisturbed_one(
    stage: int, tables: list[str], tiny: Path, tmp_path: Path
):
    settings = {
        **SETTINGS,
        "zero": {"stage": stage},
        "optim": {"lr": 1e-3, "warmup_steps": 3, "final_lr_fraction": 0.1},
    }
    arguments = (tables[:8], str(tmp_path / "saved"), 5)
    common = {"ranks": 2, "config": settings, "model": tiny / "model", "steps": 8}
    undisturbed = on_ranks(save_then_go_on, tmp_path, *arguments, **common)
    resumed = on_ranks(load_then_go_on, tmp_path, *arguments, **common)
    assert resumed == undisturbed


def test_resuming_with_other_ranks_says_so(tables: list[str], tiny: Path, tmp_path: Path):
    arguments = (tables[:2], str(tmp_path / "saved"), 1)
    model = tiny / "model"
    on_ranks(save_then_go_on, tmp_path, *arguments, ranks=2, config=SETTINGS, model=model)
    with pytest.raises(RuntimeError, match="ranks"):
        on_ranks(load_then_go_on, tmp_path, *arguments, ranks=1, config=SETTINGS, model=model)


def weights_after(learner, paths: list[str]) -> str:
    before = digest(learner)
    train(learner, paths)
    return "same" if digest(learner) == before else "changed"


def test_a_table_without_signal_changes_nothing(tiny: Path, tmp_path: Path):
    """Uniform groups, singletons, and rows that could not be scored: no gradient at all."""
    silent = [
        [group(0, (0.7, 0.7, 0.7)), group(1, (0.1,) * 7)],
        [group(2, (1.0,)), group(3, (0.9, None, None))],
        [group(4, (None, None))],
    ]
    tables = [to_table(g, step=i, run="t", temperature=1.0) for i, g in enumerate(silent)]
    paths = save_tables(tables, tmp_path)
    found = on_ranks(weights_after, tmp_path, paths, ranks=2, config=SETTINGS, model=tiny / "model")
    assert found == ["same", "same"]


def test_an_unscorable_row_is_as_if_it_were_not_there(tiny: Path, tmp_path: Path):
    with_row = group(0, (0.0, 1.0, 0.2, None), lengths=(4, 7, 9, 12))
    without = group(0, (0.0, 1.0, 0.2), lengths=(4, 7, 9))
    curves = []
    for number, scored in enumerate((with_row, without)):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = save_tables([to_table([scored], step=0, run="t", temperature=1.0)] * 3, folder)
        [(losses, _)] = on_ranks(
            train_and_digest, folder, paths, config=SETTINGS, model=tiny / "model"
        )
        curves.append(losses)
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-7)


def test_the_order_of_rows_does_not_matter(tiny: Path, tmp_path: Path):
    rng = np.random.default_rng(8)
    groups = [
        group(t, tuple(rng.choice([0.0, 0.2, 1.0], 4)), lengths=tuple(rng.integers(1, 30, 4)))
        for t in range(5)
    ]
    curves = []
    for number, order in enumerate((groups, [groups[i] for i in (3, 0, 4, 2, 1)])):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = save_tables([to_table(order, step=0, run="t", temperature=1.0)] * 3, folder)
        settings = {**SETTINGS, "micro_batch_tokens": 120}
        results = on_ranks(
            train_and_digest, folder, paths, ranks=2, config=settings, model=tiny / "model"
        )
        curves.append(results[0][0])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-6, rtol=0)


def reference_kl(learner, paths: list[str]) -> list[float]:
    return [metrics["policy/kl_reference"] for metrics in train(learner, paths)]


def test_the_reference_policy_stays_where_the_policy_began(
    tables: list[str], tiny: Path, tmp_path: Path
):
    settings = {**SETTINGS, "algorithm": {"name": "grpo", "kl": {"coef": 0.1}}}
    [kl, other] = on_ranks(
        reference_kl, tmp_path, tables[:4], ranks=2, config=settings, model=tiny / "model"
    )
    assert kl == other
    assert kl[0] == pytest.approx(0.0, abs=1e-9), "at the first step policy and reference are one"
    assert kl[-1] > 1e-6


def test_a_table_sampled_at_another_temperature_is_refused(tiny: Path, tmp_path: Path):
    paths = save_tables(make_tables(1, temperature=0.7), tmp_path)
    with pytest.raises(RuntimeError, match=r"sampled at temperature 0\.7"):
        on_ranks(train, tmp_path, paths, config=SETTINGS, model=tiny / "model")


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny: Path, tmp_path: Path):
    """A behaviour logprob beyond float32 cannot come out of `to_table`; a reward of 1e300 can."""
    huge = to_table([group(0, (0.0, 1.0))], step=0, run="t", temperature=1.0)
    bad = huge.set_column(
        huge.schema.get_field_index("behaviour_logprobs"),
        huge.schema.field("behaviour_logprobs"),
        pa.array([[float("nan")] * len(x) for x in huge["completion_ids"].to_pylist()],
                 type=huge.schema.field("behaviour_logprobs").type),
    )  # fmt: skip
    paths = save_tables([bad], tmp_path)
    with pytest.raises(RuntimeError, match="nothing was updated"):
        on_ranks(train, tmp_path, paths, config=SETTINGS, model=tiny / "model")


def scores(learner, token_ids: list[int]) -> list[float]:
    return learner.score(token_ids)


@pytest.mark.parametrize("chunk", [1 << 24, 3_000])
def test_logprobs_agree_with_the_plain_model(chunk: int, untied: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(0, 460, 40).tolist()
    [found] = on_ranks(
        scores, tmp_path, tokens, config={**SETTINGS, "logits_chunk": chunk}, model=untied
    )
    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert not any(math.isnan(value) for value in found)
