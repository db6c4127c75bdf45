"""Layers, overrides, suggestions, cross-field rules; every recipe and every default."""

import json
import re
from pathlib import Path

import pytest

from cluster import cli
from cluster.config import RunConfig, load, options
from cluster.device import resolve

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_files_layer_left_to_right_and_overrides_come_last(tmp_path: Path):
    first = write(tmp_path, "a.yaml", "steps: 5\nlearner: {optim: {lr: 1e-4, warmup_steps: 3}}\n")
    second = write(tmp_path, "b.yaml", "learner: {optim: {lr: 2e-4}}\n")
    loaded = load([first, second], ["learner.ranks=2", "--seed=9", "model.path=x"])
    config = loaded.config
    assert (config.steps, config.learner.optim.lr, config.learner.optim.warmup_steps) == (
        5,
        2e-4,
        3,
    )
    assert (config.learner.ranks, config.seed, config.model.path) == (2, 9, "x")
    assert loaded.origins["learner.optim.lr"] == second
    assert loaded.origins["learner.optim.warmup_steps"] == first
    assert loaded.origins["seed"] == "command line"


@pytest.mark.parametrize(
    ("argv", "overrides", "words"),
    [
        (["r.yaml", "a.b=1", "--c.d", "2"], ["a.b=1", "c.d=2"], ["r.yaml"]),
        (["--seed=3", "r.yaml"], ["seed=3"], ["r.yaml"]),
        (["r.yaml", "--x.y=-1"], ["x.y=-1"], ["r.yaml"]),
    ],
)
def test_overrides_in_both_habits(argv: list[str], overrides: list[str], words: list[str]):
    parsed = cli.parse(argv, switches=set(), with_value=set())
    assert (parsed.overrides, parsed.words) == (overrides, words)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.optim.learning_rate=1", "did you mean learner.optim.lr?"),
        ("learner.optimm.lr=1", "did you mean learner.optim.lr?"),
        ("sampler.num_generations=4", "did you mean sampler.group_size?"),
        ("max_stalenes=1", "did you mean schedule.max_staleness?"),
        ("eval.colour=red", "eval has dataset, subset, split, every, prompts"),
        ("zzz=1", "is not an option"),
    ],
)
def test_a_mistyped_option_is_refused_with_a_suggestion(override: str, says: str):
    with pytest.raises(ValueError, match="is not an option") as error:
        load([], [override])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps=many", "command line: steps='many'"),
        ("steps=0", "greater than or equal to 1"),
        ("learner.zero.stage=4", "learner.zero.stage=4"),
        ("sampler.sampling.temperature=0", "greater than 0"),
        ("name=../escape", "name='../escape'"),
        ("steps", "neither a YAML file nor an override"),
    ],
)
def test_a_wrong_value_is_refused_with_its_origin(override: str, says: str):
    with pytest.raises(ValueError) as error:
        load([], [override])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"), [("- 1\n", "must be a mapping"), ("a: [\n", "is not YAML")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(ValueError, match=says):
        load([write(tmp_path, "r.yaml", text)])


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match="no such file"):
        load(["nowhere.yaml"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sampler.group_size=1"], "compares the completions of one prompt"),
        (["learner.ranks=3"], "do not divide by learner.ranks=3"),
        (["sampler.max_model_len=10"], "raise it"),
        (["schedule.spare_groups=2"], "needs schedule.in_flight=abort"),
        (["schedule.spare_groups=2", "schedule.max_staleness=1"], "is for synchronous steps"),
        (
            ["schedule.uniform_groups=discard", "learner.algorithm.name=ppo"],
            "ppo learns from groups with uniform rewards",
        ),
        (["sampler.keep_kv=true", "schedule.in_flight=wait"], "leaves none: set it to keep"),
        (["schedule.parts=2"], "the learner asks no model about the table"),
        (["schedule.parts=64", "learner.algorithm.name=ppo"], "is more than schedule.groups_per"),
        (["schedule.max_group_size=12"], "is no multiple of sampler.group_size=8"),
        (["schedule.max_group_size=8"], "is no multiple of sampler.group_size=8 above"),
        (
            ["schedule.max_group_size=16", "learner.algorithm.name=reinforce++"],
            "reinforce++ does not compare the completions of a prompt",
        ),
    ],
)
def test_rules_between_fields(overrides: list[str], says: str):
    with pytest.raises(ValueError) as error:
        load([], overrides).config.check()
    assert says in str(error.value)


def test_open_tables_take_keys_of_the_users_own():
    config = load([], ["rewards.verifiers.number=0.5", "sampler.engine.seed=4"]).config
    assert config.rewards.weights == {"number": 0.5}
    assert config.sampler.engine == {"seed": 4}


def test_every_option_is_documented():
    undocumented = [name for name, (_, _, text) in options().items() if len(text) < 10]
    assert undocumented == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_is_short(recipe: Path):
    load([str(recipe)]).config.check()
    assert len([line for line in recipe.read_text().splitlines() if line]) < 60


def test_the_plan_says_where_each_value_comes_from(capsys: pytest.CaptureFixture[str]):
    recipe = str(ROOT / "recipes" / "demo.yaml")
    assert cli.main(["train", recipe, "seed=3", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_key = {line.split()[0]: line.split()[1:] for line in lines}
    assert by_key["seed"] == ["3", "command", "line"]
    assert by_key["steps"] == ["80", recipe]
    assert by_key["cluster.port"][-1] == "default"
    assert len(lines) == len(options())


def test_what_may_change_on_resume_does_not_change_the_fingerprint():
    base = load([], []).config
    assert (
        load([], ["steps=7", "eval.every=3", "cluster.port=1"]).config.deciding() == base.deciding()
    )
    assert load([], ["learner.optim.lr=1"]).config.deciding() != base.deciding()
    decayed = ["learner.optim.final_lr_fraction=0.1"]
    longer = load([], [*decayed, "steps=7"]).config
    assert longer.deciding() != load([], decayed).config.deciding()


def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="the Ray cluster has no GPU"):
        resolve(load([], ["cluster.device=cuda"]).config, gpus=0)


def test_a_gpu_cluster_gets_gpu_decisions():
    """What can be checked of the CUDA branch without a GPU: the decisions, not their effect."""
    device = resolve(load([], ["cluster.device=auto"]).config, gpus=8)
    assert (device.kind, device.dtype, device.resource) == ("cuda", "bfloat16", "GPU")
    assert (device.weight_backend, device.collectives) == ("nccl", "nccl")


def test_several_machines_need_no_folder_in_memory(tiny: Path):
    config = load([], [f"model.path={tiny / 'model'}"]).config
    assert resolve(config, gpus=0).weight_backend == "shm"
    assert resolve(config, gpus=0, one_machine=False).weight_backend == "ray"
    chosen = load([], [f"model.path={tiny / 'model'}", "cluster.weight_backend=shm"]).config
    assert resolve(chosen, gpus=0, one_machine=False).weight_backend == "shm"


def test_a_cpu_cluster_refuses_gpu_backends(tiny: Path):
    settings = [f"model.path={tiny / 'model'}", "cluster.weight_backend=nccl"]
    with pytest.raises(ValueError, match="needs GPUs"):
        resolve(load([], settings).config, gpus=0)


def test_config_round_trips_through_json():
    config = load([], ["learner.ranks=2"]).config
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_benchmarks_set_options_that_there_are():
    """They run by hand: nothing else would tell that an option went."""
    known = set(options())
    sections = "|".join({name.partition(".")[0] for name in known if "." in name})
    named = re.compile(rf'"((?:{sections})(?:\.[a-z_]+)+)"')
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    found = {(path.name, key) for path in files for key in named.findall(path.read_text())}
    assert len(found) > 20
    wrong = [each for each in found if each[1] not in known and not each[1].endswith(".jsonl")]
    assert not wrong, f"no such option: {wrong}"
