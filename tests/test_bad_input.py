"""Bad input: one clear message, before anything heavy starts, exit code 2."""

import json
import time
from pathlib import Path

import pytest
from runs import cohort, small_recipe

QUICK = 25.0
"""Seconds on a busy machine for Python, transformers and the datasets; Ray alone takes longer."""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts.dataset": "nowhere.jsonl"}, "dataset 'nowhere.jsonl': no such file"),
        ({"eval.dataset": "nowhere.parquet"}, "dataset 'nowhere.parquet': no such file"),
        (
            {"prompts.question": "query"},
            "column 'query' does not exist (columns: question, answer)",
        ),
        ({"prompts.max_tokens": "8"}, "prompts.max_tokens is 8: raise it"),
        ({"model.path": "/nowhere/model"}, "model.path='/nowhere/model': no such folder"),
        ({"model.path": ""}, "model.path is not set"),
        ({"sampler.sampling.max_tokens": "300"}, "which has max_position_embeddings=256: lower"),
        ({"sampler.group_size": "1"}, "compares the completions of one prompt"),
        ({"learner.ranks": "3"}, "do not divide by learner.ranks=3"),
        ({"rewards.verifiers": "{numbr: 1.0}"}, "'numbr' is not a built-in verifier"),
        ({"learner.optim.learning_rate": "1"}, "did you mean learner.optim.lr?"),
        ({"schedule.max_staleness": "-1"}, "greater than or equal to 0"),
        ({"learner.algorithm.name": "grppo"}, "did you mean grpo?"),
        ({"learner.algorithm.preset": "verls"}, "did you mean verl?"),
        ({"sampler.sampling.top_p": "0.9"}, "set learner.algorithm.anchor=recomputed"),
        ({"learner.algorithm.kl.placement": "reward"}, "kl.coef=0, so there is no reference"),
        ({"learner.critic.clip": "0.5"}, "learner.algorithm.name=grpo has no critic"),
        (
            {"learner.algorithm.name": "ppo", "learner.critic.path": "./nowhere"},
            "learner.critic.path='./nowhere': no such folder",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_at_once(settings: dict, says: str, tiny: Path, tmp_path: Path):
    started = time.monotonic()
    output = cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=2)
    assert says in output
    assert "Traceback" not in output
    assert "starting Ray" not in output
    assert time.monotonic() - started < QUICK


def test_an_empty_dataset(tiny: Path, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    settings = {"prompts.dataset": str(tmp_path / "empty.jsonl")}
    assert "is empty" in cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=2)


def test_a_tokenizer_without_the_template_that_is_asked_for(tiny: Path, tmp_path: Path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny / "model", bare, ignore=shutil.ignore_patterns("chat_template*"))
    settings = {"model.path": str(bare), "prompts.template": "chat"}
    output = cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=2)
    assert "the tokenizer has no chat template" in output


def test_a_folder_that_is_no_model(tmp_path: Path, tiny: Path):
    (tmp_path / "nothing").mkdir()
    settings = {"model.path": str(tmp_path / "nothing")}
    output = cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=2)
    assert "holds no model and tokenizer" in output


def test_a_run_folder_of_another_config_shows_what_differs(tiny: Path, tmp_path: Path):
    from cluster.config import load
    from cluster.train import claimed

    arguments = small_recipe(tmp_path, tiny, name="used")
    with claimed(load(arguments[:1], arguments[1:]).config):
        pass
    with claimed(load(arguments[:1], [*arguments[1:], "seed=9"]).config):
        pass  # nothing was trained yet: a corrected config is welcome
    with claimed(load(arguments[:1], arguments[1:]).config):
        (tmp_path / "outputs" / "used" / "ledger.jsonl").touch()
    output = cohort("train", *arguments, "learner.optim.lr=0.5", expect=2)
    assert "learner.optim.lr: 0.001 there, 0.5 here" in output
    assert "--fresh" in output
    never = cohort("train", *arguments, "checkpoint.resume=never", expect=2)
    assert "checkpoint.resume=never" in never
    saved = json.loads((tmp_path / "outputs" / "used" / "config.json").read_text())
    assert saved["deciding"]["learner.optim.lr"] == 0.001, "the refused run changed the folder"


def test_an_option_that_came_later_does_not_keep_a_run_from_going_on(tiny: Path, tmp_path: Path):
    from cluster.config import load
    from cluster.train import claimed

    arguments = small_recipe(tmp_path, tiny, name="old")
    config = load(arguments[:1], arguments[1:]).config
    with claimed(config):
        (config.folder / "ledger.jsonl").touch()
    saved = json.loads((config.folder / "config.json").read_text())
    del saved["deciding"]["schedule.parts"]
    (config.folder / "config.json").write_text(json.dumps(saved))
    with claimed(config):
        pass
    asks = load(arguments[:1], [*arguments[1:], "schedule.max_group_size=8"]).config
    says = r"schedule.max_group_size: 0 there, 8 here"
    with pytest.raises(ValueError, match=says), claimed(asks):
        pass


def test_a_verifier_of_whole_groups_refuses_groups_that_grow(tiny: Path, tmp_path: Path):
    from cluster import inputs
    from cluster.config import load

    (tmp_path / "whole.py").write_text("def f(completions, **kwargs):\n    return [0.0] * 4\n")
    verifiers = f'rewards.verifiers={{"{tmp_path}/whole.py:f": 1.0}}'
    arguments = [*small_recipe(tmp_path, tiny, name="p"), verifiers]
    inputs.read(load(arguments[:1], arguments[1:]).config)
    growing = load(arguments[:1], [*arguments[1:], "schedule.max_group_size=8"]).config
    with pytest.raises(ValueError, match="judges all completions of a prompt together"):
        inputs.read(growing)


def test_two_processes_in_one_run_folder(tiny: Path, tmp_path: Path):
    from cluster.config import load
    from cluster.train import claimed

    arguments = small_recipe(tmp_path, tiny, name="busy")
    with claimed(load(arguments[:1], arguments[1:]).config):
        for flags in ([], ["--fresh"]):
            output = cohort("train", *arguments, *flags, expect=2)
            assert "another process is running in" in output
    assert (tmp_path / "outputs" / "busy").is_dir(), "a live run's folder was moved"


@pytest.mark.ray
def test_more_than_the_cluster_has(tiny: Path, tmp_path: Path):
    settings = {"learner.ranks": "16", "schedule.groups_per_step": "16"}
    output = cohort("train", *small_recipe(tmp_path, tiny, **settings), expect=2)
    assert "the recipe asks for 16 learner x 0.5 CPU + 1 sampler x 0.5 CPU = 8.5 CPU" in output
    assert "the Ray cluster has" in output


@pytest.mark.ray
def test_a_port_in_use(tiny: Path, tmp_path: Path):
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = small_recipe(tmp_path, tiny, **{"cluster.port": str(port)})
        output = cohort("train", *arguments, expect=2)
    assert f"cluster.port={port} cannot be used" in output
    assert "choose another, or 0 for any free one" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "train needs a recipe"),
        (["train", "nowhere.yaml"], "no such file"),
        (["fly"], "'fly' is no command"),
        (["eval", "/nowhere"], "neither a checkpoint"),
        (["export", "/nowhere", "/tmp/x"], "neither a checkpoint"),
        (["export", "/nowhere"], "needs a checkpoint folder and a folder to write"),
    ],
)
def test_commands_that_make_no_sense(arguments: list[str], says: str):
    assert says in cohort(*arguments, expect=2)
