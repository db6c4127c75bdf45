"""Whole runs, as a user starts them: real Ray, real vLLM, real DeepSpeed, a random tiny model."""

import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import cohort, jsonl, metrics, processes_of, small_recipe, start, until_gone, wait_until
from web import Service, make_reward_model

from cluster import logprobs
from cluster.ledger import table_path
from rollout.schema import read_table, to_groups

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """(run folder, its arguments, its output) of an undisturbed synchronous run."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = small_recipe(folder, tiny, name="sync")
    output = cohort("train", *arguments)
    return folder / "outputs" / "sync", arguments, output


def test_a_run_leaves_what_the_docs_promise(finished: tuple[Path, list[str], str]):
    folder, _, output = finished
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == [
        f"{step:06d}.arrow" for step in range(1, 5)
    ]
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["schedule/staleness_max"] == 0
        assert row["policy/canary_gap"] <= 1e-4
        assert row["policy/kl_behaviour"] <= 1e-7, "sampler and learner disagree on-policy"
    result = json.loads((folder / "result.json").read_text())
    assert set(result["accuracy_by_step"]) == {"0", "2", "4"}
    assert Path(result["model"]).is_dir()
    assert list((folder / "tensorboard").glob("events*"))
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["000002", "000004"]
    assert "step 4/4" in output and "time  " in output
    assert processes_of(folder) == []


@pytest.mark.slow  # tests/test_rows.py trains with both, too
def test_judged_steps_and_greedy_completions_reach_the_table_and_the_learner(
    tiny: Path, tmp_path: Path
):
    from rollout.schema import read_table

    options = {
        "name": "remax",
        "steps": "1",
        "eval.dataset": "",
        "learner.algorithm.name": "remax",
        "rewards.verifiers": '{"recipes.demo:right_steps": 1.0, "number": 0.5}',
        "sampler.sampling.top_p": "0.9",
        "learner.algorithm.anchor": "recomputed",
        "model.lora.rank": "4",
        "learner.algorithm.kl.coef": "0.01",
        "learner.algorithm.kl.reference": "adapter",
    }
    cohort("train", *small_recipe(tmp_path, tiny, **options))
    folder = tmp_path / "outputs" / "remax"
    table = read_table(folder / "rollouts" / "000001.arrow")
    assert table.num_rows == 16, "the greedy completions are not rows"
    for row in table.to_pylist():
        assert row["greedy_reward"] is not None
        ends = [step["end"] for step in row["step_rewards"]]
        assert ends and ends[-1] <= len(row["completion_ids"])
    [step] = metrics(folder)
    assert step["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert step["policy/canary_gap"] <= 1e-4, "weights with adapters added in"
    assert step["weights/sent"] < 0.3, "behind the first push, adapters travel alone"
    assert step["policy/importance_max"] != pytest.approx(1.0, abs=1e-4), "top_p < 1 is in the gap"


def test_samplers_and_learner_agree_on_policy_to_the_promised_bound(
    finished: tuple[Path, list[str], str],
):
    """Before any update within a step, the ratio of each token is 1."""
    folder, *_ = finished
    for row in metrics(folder):
        assert row["policy/importance_max"] == pytest.approx(1.0, abs=1e-4)
        assert row["policy/importance_mean"] == pytest.approx(1.0, abs=1e-5)


def test_every_table_holds_the_facts(finished: tuple[Path, list[str], str]):
    from rollout.schema import read_table

    folder, *_ = finished
    for step, path in enumerate(sorted((folder / "rollouts").iterdir()), start=1):
        table = read_table(path)
        assert table.num_rows == 16
        assert {v for row in table["policy_versions"].to_pylist() for v in row} == {step - 1}
        assert table["group_id"].to_pylist() == sorted(table["group_id"].to_pylist())


def test_a_replay_gives_bitwise_the_same_weights(finished: tuple[Path, list[str], str]):
    folder, arguments, _ = finished
    cohort("train", *arguments, "--replay", str(folder))
    ours = json.loads((folder / "result.json").read_text())
    again = json.loads((folder.with_name("sync-replay") / "result.json").read_text())
    assert again["weights_digest"] == ours["weights_digest"]
    assert (
        metrics(folder.with_name("sync-replay"))[-1]["learner/loss"]
        == (metrics(folder)[-1]["learner/loss"])
    )


@pytest.mark.slow  # tests/test_survival.py resumes, too
def test_starting_a_finished_run_again_trains_nothing(finished: tuple[Path, list[str], str]):
    folder, arguments, _ = finished
    before = (folder / "ledger.jsonl").read_text()
    assert "resumed at step 4" in cohort("train", *arguments)
    assert (folder / "ledger.jsonl").read_text() == before


@pytest.mark.slow  # tests/test_survival.py kills the driver, too
def test_a_run_killed_behind_a_checkpoint_ends_with_the_undisturbed_runs_weights(
    finished: tuple[Path, list[str], str], tiny: Path, tmp_path: Path
):
    undisturbed, *_ = finished
    arguments = small_recipe(tmp_path, tiny, name="killed")
    folder = tmp_path / "outputs" / "killed"
    process = start("train", *arguments)
    ledger = folder / "ledger.jsonl"
    # Behind the checkpoint of step 2, and with step 3 committed, so that it has to be replayed.
    wait_until(lambda: ledger.exists() and len(jsonl(ledger)) >= 3, 200, "step 3")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until_gone(folder)
    output = cohort("train", *arguments)
    done = r"resumed at step [34]: (12|16) groups trained, the last [12] steps replayed"
    assert re.search(done, output), output
    ours, theirs = jsonl(undisturbed / "ledger.jsonl"), jsonl(ledger)
    assert [line["prompts"] for line in theirs] == [line["prompts"] for line in ours]
    tickets = [ticket for line in theirs for ticket in line["tickets"]]
    assert tickets == list(range(16)), "a prompt was lost or trained twice"
    digests = [
        json.loads((run / "result.json").read_text())["weights_digest"]
        for run in (undisturbed, folder)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_everything(signal_number: int, tiny: Path, tmp_path: Path):
    settings = {"name": "stopped", "steps": "10000", "checkpoint.every": "0", "eval.dataset": ""}
    arguments = small_recipe(tmp_path, tiny, **settings)
    folder = tmp_path / "outputs" / "stopped"
    process = start("train", *arguments)
    ledger = folder / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and len(jsonl(ledger)) >= 3, 200, "step 3")
    assert processes_of(folder), "the mark is missing: this test would prove nothing"
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal_number, output[-3000:]
    assert "goes on from the last step" in output
    until_gone(folder)
    done = len(jsonl(ledger))
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    in_an_update = (folder / "rollouts" / f"{done + 1:06d}.arrow").exists()
    assert saved == [done] or (in_an_update and not saved), "no checkpoint of the last step"
    assert f"{done} steps" in cohort("ledger", "verify", str(folder))


def test_one_step_off_with_two_ranks_and_a_reference(tiny: Path, tmp_path: Path):
    arguments = small_recipe(
        tmp_path,
        tiny,
        name="async",
        steps="6",
        **{
            "schedule.max_staleness": "1",
            "schedule.parts": "3",
            "learner.ranks": "2",
            "learner.zero.stage": "3",
            "learner.algorithm.kl.coef": "0.01",
            "learner.record_logprobs": "true",
        },
    )
    cohort("train", *arguments)
    folder = tmp_path / "outputs" / "async"
    rows = metrics(folder)
    for step in range(1, 7):
        table, noted = (
            read_table(table_path(folder / "rollouts", step)),
            logprobs.read(folder, step),
        )
        assert noted is not None
        gaps = {True: [0.0], False: [0.0]}
        for row, learners in zip(table.to_pylist(), noted.to_pylist(), strict=True):
            of_today = np.array(row["policy_versions"]) == step - 1
            gap = np.abs(np.array(learners) - np.array(row["behaviour_logprobs"]))
            for fresh in (True, False):
                gaps[fresh] += gap[of_today == fresh].tolist()
        assert max(gaps[True]) < 1e-4, "the policy that sampled a token gives it what it was given"
        assert len(gaps[False]) == 1 or max(gaps[False]) > 1e-4, "another policy's is another"
    assert max(row["schedule/staleness_max"] for row in rows) == 1, "nothing was ever off-policy"
    for row in rows:
        assert row["policy/canary_gap"] <= 1e-4
    assert rows[-1]["policy/kl_reference"] > 0
    ledger = jsonl(tmp_path / "outputs" / "async" / "ledger.jsonl")
    assert [t for line in ledger for t in line["tickets"]] == list(range(24))


LUCK = """
def odd(completion, answer):
    return float(sum(map(ord, completion)) % 2)
def hopeless(completion, answer):
    return 0.0
"""


@pytest.mark.slow  # tests/test_sampler.py aborts in an engine, test_window.py in many schedules
def test_dynamic_sampling_with_updates_that_abort(tiny: Path, tmp_path: Path):
    (tmp_path / "luck.py").write_text(LUCK)
    settings = {
        "name": "dynamic",
        "rewards.verifiers": f'{{"{tmp_path}/luck.py:odd": 1.0}}',
        "eval.dataset": "",
        "schedule.max_staleness": "2",
        "schedule.in_flight": "abort",
        "schedule.uniform_groups": "discard",
        "sampler.sampling.max_tokens": "24",
    }
    cohort("train", *small_recipe(tmp_path, tiny, **settings))
    folder = tmp_path / "outputs" / "dynamic"
    rows = metrics(folder)
    assert len(rows) == 4
    assert all(row["rollout/uniform_groups"] == 0 for row in rows)
    assert rows[-1]["schedule/discarded"] > 0, "every group was mixed: this proves nothing"
    assert 0 < max(row["schedule/staleness_max"] for row in rows) <= 2
    tickets = [t for line in jsonl(folder / "ledger.jsonl") for t in line["tickets"]]
    assert len(set(tickets)) == 16 and max(tickets) > 15, "others took the place of the discarded"
    for path in (folder / "rollouts").iterdir():
        for versions in read_table(path)["policy_versions"].to_pylist():
            assert len(set(versions)) == 1, "an update went through a completion"


@pytest.mark.slow
def test_groups_that_grow_until_their_rewards_differ(tiny: Path, tmp_path: Path):
    """Under updates that come in between."""
    (tmp_path / "luck.py").write_text(LUCK)
    settings = {
        "name": "growing",
        "rewards.verifiers": f'{{"{tmp_path}/luck.py:odd": 1.0}}',
        "eval.dataset": "",
        "sampler.group_size": "2",
        "schedule.max_group_size": "6",
        "schedule.max_staleness": "1",
        "learner.algorithm.name": "rloo",
    }
    cohort("train", *small_recipe(tmp_path, tiny, **settings))
    folder = tmp_path / "outputs" / "growing"
    sizes = set()
    for step, row in enumerate(metrics(folder), start=1):
        groups = to_groups(read_table(table_path(folder / "rollouts", step)))
        assert row["rollout/group_size"] == sum(len(g.scores) for g in groups) / len(groups)
        for scored in groups:
            sizes.add(size := len(scored.scores))
            assert scored.group.rounds in ((), tuple(n // 2 for n in range(size)))
            assert size == 6 or not scored.is_uniform
            before = [score.reward for score in scored.scores[: size - 2]]
            assert len(set(before)) <= 1, "it went on although two rewards differed"
            texts = [c.token_ids.tobytes() for c in scored.group.completions]
            assert len(set(texts)) == size, "a later round repeats an earlier one"
    assert len(sizes) > 1, "no group grew: this proves nothing"


@pytest.mark.slow
def test_an_endless_search_for_mixed_groups_ends_with_a_reason(tiny: Path, tmp_path: Path):
    (tmp_path / "luck.py").write_text(LUCK)
    settings = {
        "name": "hopeless",
        "rewards.verifiers": f'{{"{tmp_path}/luck.py:hopeless": 1.0}}',
        "eval.dataset": "",
        "schedule.uniform_groups": "discard",
        "schedule.max_discards": "2",
    }
    output = cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=1)
    assert "the last 8 groups had uniform rewards (the last one [0.0])" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_synchronous_step_with_spare_groups(tiny: Path, tmp_path: Path):
    settings = {
        "name": "spare",
        "eval.dataset": "",
        "schedule.spare_groups": "3",
        "schedule.in_flight": "abort",
        "sampler.max_running": "8",
        "sampler.sampling.max_tokens": "24",
    }
    cohort("train", *small_recipe(tmp_path, tiny, **settings))
    folder = tmp_path / "outputs" / "spare"
    rows = metrics(folder)
    assert [row["schedule/staleness_max"] for row in rows] == [0.0] * 4, "it stays on-policy"
    tickets = [t for line in jsonl(folder / "ledger.jsonl") for t in line["tickets"]]
    assert len(set(tickets)) == 16 and set(tickets) <= set(range(19))


@pytest.mark.slow
def test_bfloat16_with_two_samplers(tiny: Path, tmp_path: Path):
    """The dtype of GPUs, as far as a CPU computes it; and publishes that reach two samplers without
    a shared folder, the second one as a difference."""
    settings = {
        "model.dtype": "bfloat16",
        "sampler.replicas": "2",
        "rewards.scorers": "2",
        "cluster.weight_backend": "ray",
        "learner.optim.lr": "1e-6",
    }
    arguments = small_recipe(tmp_path, tiny, name="bf16", steps="2", **settings)
    cohort("train", *arguments)
    rows = metrics(tmp_path / "outputs" / "bf16")
    assert len(rows) == 2
    assert rows[-1]["weights/sent"] < 0.2
    for row in rows:
        assert 1e-6 < row["policy/canary_gap"] < 0.3, "rounding of bfloat16, and no more"


def test_a_checkpoint_is_evaluated_and_exported(
    finished: tuple[Path, list[str], str], tmp_path: Path
):
    folder, *_ = finished
    checkpoint = folder / "checkpoints" / "000004"
    output = cohort("eval", str(checkpoint))
    expected = json.loads((folder / "result.json").read_text())["accuracy_final"]
    found = next(line for line in output.splitlines() if line.startswith("eval/number "))
    assert float(found.split()[-1]) == pytest.approx(expected, abs=1e-4)
    target = tmp_path / "exported"
    cohort("export", str(checkpoint), str(target), "--shard-size", "500KB")
    names = {path.name for path in target.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert "is not empty" in cohort("export", str(checkpoint), str(target), expect=2)


@pytest.mark.slow  # test_a_checkpoint_is_evaluated_and_exported exports, too
def test_an_exported_model_gives_equal_logprobs_in_transformers_and_vllm(
    finished: tuple[Path, list[str], str], tmp_path: Path
):
    import numpy as np
    from engines import with_sampler
    from test_sampler import load, logprobs_of

    folder, *_ = finished
    target = tmp_path / "exported"
    cohort("export", str(folder / "checkpoints" / "000004"), str(target), "--shard-size", "500KB")
    tokens = np.random.default_rng(3).integers(0, 460, 50).tolist()
    ours = logprobs_of(load(str(target)), tokens)
    theirs = with_sampler(score, tmp_path, target, tokens)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def score(sampler, tokens: list[int]) -> list[float]:
    return sampler.score(tokens).result(60).tolist()


@pytest.mark.slow
def test_gsm8k_trains_two_steps_with_a_random_model(shared: Path, tiny: Path, tmp_path: Path):
    data = shared / "data" / "gsm8k"
    arguments = small_recipe(
        tmp_path,
        tiny,
        name="gsm8k",
        steps="2",
        **{
            "prompts.dataset": str(data / "train.jsonl"),
            "eval.dataset": str(data / "test.jsonl"),
            "prompts.max_tokens": "200",
            "prompts.too_long": "drop",
            "sampler.max_model_len": "230",
        },
    )
    output = cohort("train", *arguments)
    assert "dropped" in output
    assert len(metrics(tmp_path / "outputs" / "gsm8k")) == 2


@pytest.mark.slow  # tests/test_docs.py has a verifier of one's own
def test_the_users_own_verifier_and_a_dataset_that_changes(tiny: Path, tmp_path: Path):
    (tmp_path / "my_task.py").write_text(
        "def even(completion, answer):\n    return float(len(completion) % 2 == 0)\n"
    )
    data = shutil.copy(tiny / "train.jsonl", tmp_path)
    arguments = small_recipe(tmp_path, tiny, name="own", steps="1", **{"prompts.dataset": data})
    arguments.append("rewards.verifiers={my_task:even: 2.0}")
    cohort("train", *arguments, PYTHONPATH=str(tmp_path))
    [row] = metrics(tmp_path / "outputs" / "own")
    assert row["reward/mean"] == pytest.approx(2.0 * row["reward/my_task:even"])
    rows = Path(data).read_text().splitlines(keepends=True)
    Path(data).write_text("".join(rows[1:] + rows[:1]))
    output = cohort("train", *arguments, "steps=2", expect=2, PYTHONPATH=str(tmp_path))
    assert "have changed since its last checkpoint" in output


REWARDS = """
import time, zlib

def kind(text):
    return zlib.crc32(text.encode()) % 8

def moody(completion, answer):
    if kind(completion) == 0:
        time.sleep(60)
    if kind(completion) == 1:
        raise RuntimeError("no idea")
    return 1.0

def trl(prompts, completions, **columns):
    return [len(set(completions)) / len(completions)] * len(completions)
"""


def test_every_kind_of_reward_in_one_run(tiny: Path, tmp_path: Path):
    """Functions, one of another system, a reward model, a service; all four outcomes' facts in the
    rows, and what failed is left out, not a zero."""
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    functions: dict[str, Any] = {}
    exec(REWARDS, functions)
    service = Service()
    service.respond = lambda asked: {"rewards": [0.5] * len(asked["completions"])}
    verifiers = {
        "number": 1.0,
        f"{tmp_path}/my_rewards.py:moody": 0.5,
        f"{tmp_path}/my_rewards.py:trl": {"weight": 0.25},
        "shape": {"use": "tags", "tags": ["think", "answer"], "weight": 0.1},
        "quality": {
            "use": "reward_model",
            "path": str(make_reward_model(tiny / "model", tmp_path / "rm")),
            "weight": 0.01,
        },
        "remote": {"use": "http", "url": service.url, "weight": 0.5},
    }
    recipe = small_recipe(
        tmp_path,
        tiny,
        name="rewards",
        steps="2",
        **{"eval.dataset": "", "rewards.timeout": "1", "rewards.max_unscorable": "1"},
    )
    try:
        output = cohort("train", *recipe, f"rewards.verifiers={json.dumps(verifiers)}")
    finally:
        service.close()
    assert "my_rewards.py:trl: TRL form, once for all completions of a prompt" in output
    folder = tmp_path / "outputs" / "rewards"
    tables = [read_table(path) for path in sorted((folder / "rollouts").glob("*.arrow"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == 32
    outcome = {0: "timeout", 1: "unscorable"}
    for row in rows:
        expected = outcome.get(functions["kind"](row["completion"]), "scored")
        assert row["reward_outcome"] == expected, row["reward_note"]
        assert (row["reward"] is None) == (expected == "unscorable")
        parts = dict(row["reward_parts"])
        assert parts["remote"] == 0.5 and abs(parts["quality"]) > 0
        if expected == "timeout":
            assert row["reward"] == 0.0 and "took more than 1 s" in row["reward_note"]
        if expected == "scored":
            weights = {
                name: v if isinstance(v, float) else v["weight"] for name, v in verifiers.items()
            }
            total = sum(weights[name] * parts[name] for name in weights)
            assert row["reward"] == pytest.approx(total)
            assert set(dict(row["reward_seconds"])) == set(verifiers)
    logged = metrics(folder)
    counts = Counter(row["reward_outcome"] for row in rows)
    assert counts["scored"] and counts["timeout"] + counts["unscorable"]
    for name, each in (("timeouts", "timeout"), ("verifier_errors", "unscorable")):
        assert sum(row[f"reward/{name}"] for row in logged) == counts[each]
        said = [sum(row[f"reward/{verifier}/{each}"] for row in logged) for verifier in verifiers]
        assert max(said) > 0 if counts[each] else sum(said) == 0
    assert all(row["reward/remote/seconds"] > 0 for row in logged)


def test_a_run_whose_verifier_always_fails_stops_and_says_why(tiny: Path, tmp_path: Path):
    (tmp_path / "broken.py").write_text(
        "def judge(completion, answer):\n    raise KeyError('gold')\n"
    )
    recipe = small_recipe(tmp_path, tiny, name="broken", **{"eval.dataset": ""})
    verifiers = f"rewards.verifiers={{{tmp_path}/broken.py:judge: 1.0}}"
    output = cohort("train", *recipe, verifiers, expect=1)
    assert "16 of 16 completions could not be scored" in output
    assert "KeyError: 'gold'" in output


def test_the_package_leaves_no_weight_files():
    left = [path.name for path in Path("/dev/shm").glob("cohort-weights-*")]
    assert left == [], "shared memory of finished runs"
    assert shutil.disk_usage("/dev/shm").free > 0


@pytest.mark.slow
def test_weights_by_broadcast_train_what_weights_in_memory_do(tiny: Path, tmp_path: Path):
    """The way of GPUs, in which samplers pause and the learner takes part: the same protocol, ranks
    and buckets, over gloo. Two samplers, and two learner ranks that gather their shards for it."""
    found = {}
    for backend in ("shm", "gloo"):
        settings = {
            "cluster.weight_backend": backend,
            "sampler.replicas": "2",
            "learner.ranks": "2",
            "learner.zero.stage": "3",
        }
        arguments = small_recipe(tmp_path, tiny, name=backend, steps="3", **settings)
        cohort("train", *arguments)
        rows = metrics(tmp_path / "outputs" / backend)
        assert len(rows) == 3
        assert all(row["policy/canary_gap"] < 1e-3 for row in rows)
        assert all(row["schedule/staleness_max"] == 0 for row in rows), "versions were not stamped"
        found[backend] = json.loads((tmp_path / "outputs" / backend / "result.json").read_text())
    assert found["gloo"]["weights_digest"] == found["shm"]["weights_digest"]
