"""The learner on real DeepSpeed ranks over gloo: the same numbers however the work is split."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import group, judged, prompt
from ranks import digest, on_ranks, save_tables, train, train_and_digest

from learner.algorithms import ALGORITHMS
from learner.config import LearnerConfig, ModelConfig
from learner.learner import Learner
from rollout.schema import read_table, to_table

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


def iterate_in_part(learner, paths: list[str]) -> dict:
    """Weights of a learner behind an update: whole, broken off, and whole again."""
    train(learner, paths)
    source = learner._source
    parameters = [p for _, p in source._parameters]
    status = [p.ds_status.name for p in parameters]
    names = []
    for name, _ in source:
        names.append(name)
        if len(names) == 5:
            whole = sum(p.ds_status.name != "NOT_AVAILABLE" for p in parameters)
            break
    return {
        "announced": [meta.name for meta in source.metadata()],
        "whole": whole,
        "status": [status, [p.ds_status.name for p in parameters]],
        "digests": [source.digest(), source.digest()],
        "again": train(learner, paths)[-1]["learner/loss"],
    }


def test_a_layer_is_gathered_while_the_one_before_is_sent(
    tables: list[str], tiny: Path, tmp_path: Path
):
    """And whoever breaks off leaves every rank with its share alone, able to go on."""
    settings = {
        **SETTINGS,
        "zero": {"stage": 3},
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    first, second = on_ranks(
        iterate_in_part, tmp_path, tables[:2], ranks=2, config=settings, model=tiny / "model"
    )
    assert first == second
    assert first["digests"][0] == first["digests"][1]
    assert first["status"][0] == first["status"][1], "left gathered"
    assert set(first["status"][1]) == {"NOT_AVAILABLE"}
    assert 5 < first["whole"] < len(first["announced"]), "this layer and the next, no more"


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
    learner.save(folder, learner.version)
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


# -- every row, on real ranks ----------------------------------------------------------------------

EVERYTHING = {
    "anchor": "recomputed",
    "correction": {"kind": "token_mask", "low": 1e-6, "high": 1e6},
    "kl": {"coef": 0.1},
    "entropy": {"coef": 0.01},
}


def another(learner, options: dict) -> Learner:
    """A second learner on the same ranks."""
    config = LearnerConfig.model_validate({**learner._config.model_dump(), **options})
    path = learner._model_path
    return Learner(
        config, ModelConfig(path=path), learner._placement, steps=9, temperature=1.0, max_tokens=32
    )


def first_step_of_every_row(learner, path: str) -> dict[str, list[float]]:
    found = {}
    for name in ALGORITHMS:
        options = {} if name == "sft" else EVERYTHING
        report = another(learner, {"algorithm": {"name": name, **options}}).update(
            read_table(Path(path))
        )
        keys = ("learner/loss", "learner/grad_norm", "critic/grad_norm", "policy/kl_reference")
        found[name] = [report.metrics.get(key, 0.0) for key in keys]
    return found


def test_every_row_has_one_gradient_on_1_2_and_4_ranks(tiny: Path, tmp_path: Path):
    rng = np.random.default_rng(3)
    scored = []
    for ticket in range(4):
        rewards = tuple(float(r) for r in rng.choice([0.0, 0.7, 1.0], 4))
        lengths = tuple(int(n) for n in rng.integers(1, 30, 4))
        scored.append(judged(group(ticket, rewards, lengths=lengths), greedy=0.3, seed=ticket))
    [path] = save_tables([to_table(scored, step=0, run="t", temperature=1.0)], tmp_path)
    found = {}
    for ranks, budget in ((1, 100_000), (2, 150), (4, 80)):
        settings = {"micro_batch_tokens": budget, "logits_chunk": 20_000, "zero": {"stage": 2}}
        results = on_ranks(
            first_step_of_every_row, tmp_path, path, ranks=ranks, config=settings,
            model=tiny / "model",
        )  # fmt: skip
        assert all(result == results[0] for result in results), "ranks disagree"
        found[ranks] = results[0]
    for name, (loss, norm, critic, _) in found[1].items():
        assert norm > 0, f"{name} has no gradient"
        assert (critic > 0) == ALGORITHMS[name].critic
        for ranks in (2, 4):
            np.testing.assert_allclose(
                found[ranks][name], found[1][name], atol=1e-6, rtol=1e-6,
                err_msg=f"{name} on {ranks} ranks",
            )  # fmt: skip
        assert math.isfinite(loss)


def critic_tables(count: int) -> list[pa.Table]:
    """What a completion is worth can be read from its prompt, of which there are two."""
    tables = []
    for step in range(count):
        scored = []
        for ticket in range(8 * step, 8 * step + 8):
            plain = group(ticket, (float(ticket % 2),) * 2, lengths=(3, 5))
            inner = replace(plain.group, prompt=prompt(40 * (ticket % 2)))
            scored.append(replace(plain, group=inner))
        tables.append(to_table(scored, step=step, run="t", temperature=1.0))
    return tables


@pytest.mark.parametrize("stage", [2, 3])
def test_the_critic_learns(stage: int, tiny: Path, tmp_path: Path):
    settings = {
        "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
        "critic": {"lr": 1e-3, "clip": None},
        "zero": {"stage": stage},
    }
    paths = save_tables(critic_tables(20), tmp_path)
    [metrics, other] = on_ranks(
        train, tmp_path, paths, ranks=2, config=settings, model=tiny / "model"
    )
    explained = [m["critic/explained_variance"] for m in metrics]
    assert explained == [m["critic/explained_variance"] for m in other]
    assert explained[0] == 0.0, "a head of zeros explains nothing"
    assert np.mean(explained[-3:]) > 0.5, f"explained variance over the steps: {explained}"
    assert metrics[-1]["critic/value_loss"] < metrics[0]["critic/value_loss"] / 2


def test_the_policy_waits_while_the_critic_warms_up(tiny: Path, tmp_path: Path):
    settings = {"algorithm": {"name": "ppo"}, "critic": {"lr": 1e-3, "warmup_steps": 3}}
    paths = save_tables(critic_tables(4), tmp_path)
    for count, expected in ((3, "same"), (4, "changed")):
        arguments = {"config": settings, "model": tiny / "model"}
        assert on_ranks(weights_after, tmp_path, paths[:count], **arguments) == [expected]


def state_of(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k != "learner/tokens_per_s"}


def save_then_say(learner, paths: list[str], folder: str, at: int) -> list:
    train(learner, paths[:at])
    learner.save(folder, learner.version)
    return [state_of(m) for m in train(learner, paths[at:])]


def load_then_say(learner, paths: list[str], folder: str, at: int) -> list:
    learner.load(folder, at)
    return [state_of(m) for m in train(learner, paths[at:])]


@pytest.mark.parametrize("reference", ["copy", "sharded"])
def test_critic_reference_and_coefficients_resume_bitwise(
    reference: str, tables: list[str], tiny: Path, tmp_path: Path
):
    settings = {
        "algorithm": {
            "name": "ppo",
            "epochs": 2,
            "minibatches": 2,
            "kl": {"coef": 0.1, "target": 1e-4, "horizon": 20, "update_every": 2,
                   "reference": reference},
            "entropy": {"floor": 9.0},
        },
        "optim": {"lr": 1e-3},
        "critic": {"lr": 1e-3},
        "zero": {"stage": 3 if reference == "sharded" else 2},
    }  # fmt: skip
    arguments = (tables[:8], str(tmp_path / "saved"), 5)
    common = {"ranks": 2, "config": settings, "model": tiny / "model", "steps": 8}
    undisturbed = on_ranks(save_then_say, tmp_path, *arguments, **common)
    assert undisturbed[0][-1]["policy/kl_coef"] != 0.1
    assert undisturbed[0][-1]["policy/entropy_coef"] > 0
    assert undisturbed[0][-1]["policy/kl_reference"] > 0
    resumed = on_ranks(load_then_say, tmp_path, *arguments, **common)
    assert resumed == undisturbed


KINDS = [(2, "copy"), (2, "offload"), (2, "sharded"), (3, "copy"), (3, "sharded")]


def kl_of_every_kind(learner, paths: list[str]) -> dict[str, list[float]]:
    found = {}
    for stage, reference in KINDS:
        kl = {"coef": 0.1, "reference": reference, "update_every": 2}
        options = {"algorithm": {"kl": kl}, "zero": {"stage": stage}}
        found[f"{reference} at stage {stage}"] = reference_kl(another(learner, options), paths)
    return found


def test_wherever_the_reference_is_it_says_the_same(tables: list[str], tiny: Path, tmp_path: Path):
    settings = {
        "optim": {"lr": 1e-3},
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    [found, other] = on_ranks(
        kl_of_every_kind, tmp_path, tables[:4], ranks=2, config=settings, model=tiny / "model"
    )
    assert found == other
    first = found["copy at stage 2"]
    assert first[1] > 1e-6, "the policy has moved away from it"
    assert first[2] == pytest.approx(0.0, abs=1e-9), "it has become the policy of version 2"
    for kind, kl in found.items():
        np.testing.assert_allclose(kl, first, atol=1e-7, err_msg=kind)


def train_adapters(learner, paths: list[str], folder: str) -> dict:
    from learner.adapter import plain_name
    from learner.source import AdapterSource

    before = learner._source.full_state(keep=True)
    kl = reference_kl(learner, paths)
    learner.export(folder)
    after = learner._source.full_state(keep=True)
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    parameters = dict(learner._model.named_parameters()).items()
    frozen = [name for name, p in parameters if plain_name(name) is not None and p.requires_grad]
    source = AdapterSource(learner._model, sharded=learner._config.zero.stage == 3)
    apart = {name: tensor.clone() for name, tensor in source}
    changing = {name: tensor.clone() for name, tensor in source.changing()}
    added = {
        name: apart[f"{name}.lora_B"] @ apart[f"{name}.lora_A"] * scale
        for name, scale in source.scales.items()
    }
    wrong = [n for n in after if not torch.equal(after[n], apart[n] + added.get(n, 0.0))]
    return {
        "kl": kl,
        "moved": moved,
        "frozen": frozen,
        "score": learner.score(list(range(1, 30))),
        "wrong": wrong,
        "announced": [meta.name for meta in source.metadata()] == list(apart),
        "changing": list(changing) == list(apart)[source.frozen :],
        "alike": all(torch.equal(apart[name], tensor) for name, tensor in changing.items()),
    }


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_are_trained_alone_and_leave_as_whole_weights(
    stage: int, tables: list[str], tiny: Path, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    settings = {
        "algorithm": {"kl": {"coef": 0.1, "reference": "adapter"}},
        "optim": {"lr": 1e-2},
        "zero": {"stage": stage},
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    folder = str(tmp_path / "exported")
    settings = settings if stage == 3 else {**settings, "deepspeed": {}}
    [found, _] = on_ranks(
        train_adapters, tmp_path, tables[:3], folder, ranks=2, config=settings,
        model=tiny / "model", lora=4,
    )  # fmt: skip
    assert found["kl"][0] == pytest.approx(0.0, abs=1e-9)
    assert found["kl"][-1] > 1e-4, "with its adapters off, the policy is where it began"
    assert found["frozen"] == []
    assert found["moved"] and all("_proj" in name for name in found["moved"])
    assert not found["wrong"], "what travels apart is not what it is added up to"
    assert found["announced"] and found["changing"] and found["alike"], found
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(1, 30)
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    np.testing.assert_allclose(found["score"], expected.numpy(), atol=1e-4)


def test_a_reward_models_head_is_kept_and_a_classifiers_refused(tiny: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    from learner.critic import load_critic

    for outputs in (1, 2):
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny / "model", num_labels=outputs
        )
        model.save_pretrained(tmp_path / str(outputs))
    with pytest.raises(ValueError, match="2 outputs"):
        load_critic(str(tmp_path / "2"), dtype=torch.float32, gradient_checkpointing=False)
    critic = load_critic(str(tmp_path / "1"), dtype=torch.float32, gradient_checkpointing=False)
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "1").eval()
    tokens = torch.arange(1, 12)[None]
    with torch.no_grad():
        values = critic(tokens, torch.ones_like(tokens, dtype=torch.bool))
        last = [reward(tokens[:, : t + 1]).logits[0, 0] for t in range(tokens.shape[1])]
    torch.testing.assert_close(values[0], torch.stack(last), atol=1e-5, rtol=1e-5)
    assert values.abs().max() > 0
    plain = load_critic(str(tiny / "model"), dtype=torch.float32, gradient_checkpointing=False)
    assert not plain(tokens, torch.ones_like(tokens, dtype=torch.bool)).any()


def steps_taken(learner, paths: list[str]) -> list[float]:
    report = learner.update(read_table(Path(paths[0])))
    return [report.version, report.metrics["learner/trained_tokens"]]


def say_how(learner, paths: list[str]) -> dict:
    """Loss, gradient norms and what a reference and a critic said, and whether rows were shared."""
    from learner import batch

    packed, collate = [], batch.collate
    import learner.learner as module

    def watched(*args, **options):
        found = collate(*args, **options)
        packed.append(found.places_ST is not None)
        return found

    module.collate = watched
    [metrics] = train(learner, paths)
    names = ("learner/loss", "learner/grad_norm", "policy/kl_reference", "policy/entropy")
    return {"packed": any(packed)} | {name: metrics[name] for name in names}


def test_packed_rows_train_as_padded_ones_do(tiny: Path, tmp_path: Path):
    """Ragged lengths, two ranks, weights sharded: sequences share rows in every pass there is."""
    lengths = (3, 40, 5, 90, 8, 4, 22, 61)
    rewards = (0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.0)
    groups = [group(ticket, rewards, lengths=lengths) for ticket in range(3)]
    paths = save_tables([to_table(groups, step=1, run="r", temperature=1.0)], tmp_path)
    algorithm = {"kl": {"coef": 0.01}, "anchor": "recomputed"}
    found = {}
    for packing in (False, True):
        settings = {
            **SETTINGS,
            "algorithm": algorithm,
            "packing": packing,
            "zero": {"stage": 3},
            "micro_batch_tokens": 400,
        }
        arguments = {"config": settings, "model": tiny / "model", "ranks": 2}
        found[packing], _ = on_ranks(say_how, tmp_path, paths, **arguments)
    assert found[True].pop("packed") and not found[False].pop("packed")
    for name, value in found[False].items():
        assert found[True][name] == pytest.approx(value, rel=2e-4, abs=1e-7), name


def test_epochs_and_minibatches_make_one_version(tables: list[str], tiny: Path, tmp_path: Path):
    found = []
    for algorithm in ({}, {"epochs": 3, "minibatches": 2}):
        settings = {"algorithm": algorithm, "optim": {"lr": 1e-3}}
        [result] = on_ranks(steps_taken, tmp_path, tables, config=settings, model=tiny / "model")
        found.append(result)
    assert found[0][0] == found[1][0] == 1
    assert found[1][1] == 3 * found[0][1]


def look_ahead(learner, paths: list[str], sizes: list[int]) -> list:
    """Updates whose tables came in parts of so many groups; the metrics, and the weights."""
    found = []
    for path in paths:
        table = read_table(Path(path))
        starts = np.flatnonzero(np.diff(table["group_id"].to_numpy(), prepend=-1))
        ends = np.append(starts, table.num_rows)[np.cumsum(sizes)] if sizes else []
        for start, end in itertools.pairwise([0, *map(int, ends)]):
            learner.look(table.slice(start, end - start))
        metrics = learner.update(table).metrics
        found.append({name: value for name, value in metrics.items() if "per_s" not in name})
    return [found, digest(learner)]


def test_parts_of_a_table_may_be_looked_at_ahead(tables: list[str], tiny: Path, tmp_path: Path):
    """What is asked of the models is the same up to the rounding of other micro-batches; and the
    same to the bit when the parts are."""
    config = {
        "optim": {"lr": 1e-3},
        "algorithm": {"name": "ppo", "anchor": "recomputed", "kl": {"coef": 0.05}},
    }
    found = {}
    for name, sizes in {"whole": [], "parts": [2, 1, 1], "again": [2, 1, 1]}.items():
        arguments = (tables[:3], sizes)
        [found[name], other] = on_ranks(
            look_ahead, tmp_path, *arguments, ranks=2, config=config, model=tiny / "model"
        )
        assert found[name] == other, "the ranks do not agree"
    assert found["parts"] == found["again"]
    for whole, parts in zip(found["whole"][0], found["parts"][0], strict=True):
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-6)


def look_elsewhere(learner, paths: list[str]) -> str:
    ahead, table = (read_table(Path(path)) for path in paths)
    learner.look(ahead)
    with pytest.raises(RuntimeError) as error:
        learner.update(table)
    return str(error.value)


def test_looking_at_other_rows_than_those_that_are_trained_is_an_error(
    tables: list[str], tiny: Path, tmp_path: Path
):
    [said] = on_ranks(look_elsewhere, tmp_path, tables[:2], model=tiny / "model")
    assert said == "the learner looked ahead at other rows than those of the table"


def drift(learner, path: str) -> list[float]:
    """What the learner says of it, and the same from its logprobs."""
    table = read_table(Path(path))
    gaps = []
    for row in table.to_pylist():
        logprobs = learner.score([*row["prompt_ids"], *row["completion_ids"]])
        said = logprobs[len(row["prompt_ids"]) - 1 :]
        began, *_ = row["policy_versions"]
        gaps += [
            abs(ours - theirs)
            for ours, theirs, version in zip(
                said, row["behaviour_logprobs"], row["policy_versions"], strict=True
            )
            if began < version == 1
        ]
    learner.version = 1
    return [learner.update(table).metrics["policy/kv_drift"], sum(gaps) / len(gaps)]


def test_what_keys_and_values_kept_through_an_update_cost_is_measured(tiny: Path, tmp_path: Path):
    """In the first of several optimizer steps: behind it, the policy is another."""
    [table] = make_tables(1)
    completions = table["completion_ids"].to_pylist()
    versions = [[min(t // 2, 1) for t in range(len(ids))] for ids in completions]
    at = table.schema.get_field_index("policy_versions")
    field = table.schema.field(at)
    seamed = table.set_column(at, field, pa.array(versions, type=field.type))
    [path] = save_tables([seamed], tmp_path)
    config = {"algorithm": {"epochs": 2}}
    [[said, counted]] = on_ranks(drift, tmp_path, path, model=tiny / "model", config=config)
    assert said == pytest.approx(counted, rel=1e-4) and counted > 0.1


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
