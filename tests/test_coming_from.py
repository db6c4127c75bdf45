"""Settings of other systems become recipes that load."""

import re
from pathlib import Path

import pytest
from runs import ROOT

from cluster import aliases
from cluster.cli import main
from cluster.config import load, options
from cluster.tools import peers
from cluster.tools.coming_from import translate
from cluster.tools.peers import DEFAULTS, RENAMED
from cluster.tools.peers import TABLES as SYSTEMS

MINIBATCH = "actor_rollout_ref.actor.ppo_mini_batch_size"
VERL = """
set -x
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\
    data.train_files=$HOME/data/gsm8k/train.parquet data.train_batch_size=1024 \\
    data.max_prompt_length=512 data.max_response_length=1024 \\
    actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B-Instruct \\
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.rollout.n=5 \\
    actor_rollout_ref.actor.kl_loss_coef=0.001 +trainer.val_before_train=False \\
    trainer.logger='["console","wandb"]' trainer.save_freq=-1 trainer.total_epochs=15 $@
"""
TRL = """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: gsm8k
learning_rate: 2.0e-6
num_generations: 8
per_device_train_batch_size: 16
gradient_accumulation_steps: 4
loss_type: grpo
scale_rewards: group
beta: 0.04
adam_beta2: 0.99
bf16: true
use_vllm: true
"""
OPENRLHF = """
ray job submit -- python3 -m openrlhf.cli.train_ppo_ray --pretrain meta/llama \\
   --advantage_estimator reinforce_baseline --n_samples_per_prompt 8 --init_kl_coef 1e-3 \\
   --eps_clip_low_high 0.2 0.27 --zero_stage 3 --bf16 --packing_samples --generate_max_len 2048
"""


def loaded(system: str, text: str, suffix: str, folder: Path) -> tuple:
    """What they are with us, once our own reader took them, and what was left."""
    file = folder / f"theirs{suffix}"
    file.write_text(text)
    found = translate(system, file)
    recipe = folder / "ours.yaml"
    recipe.write_text(found.text(file.name))
    config = load([str(recipe)], []).config
    if "to be settled" not in recipe.read_text():
        config.check()
    return config, found.left


def test_a_script_of_verl(tmp_path: Path):
    config, left = loaded("verl", VERL, ".sh", tmp_path)
    assert config.learner.algorithm.name == "grpo" and config.learner.algorithm.preset == "verl"
    assert (config.schedule.groups_per_step, config.sampler.group_size) == (1024, 5)
    assert (config.prompts.max_tokens, config.sampler.sampling.max_tokens) == (512, 1024)
    assert config.learner.optim.lr == 1e-6
    assert config.learner.algorithm.kl.coef == 0  # theirs is not used without use_kl_loss
    assert config.logging.trackers == ["wandb"] and config.checkpoint.every == 0
    assert left[:2] == ["trainer.val_before_train=False", "trainer.total_epochs=15"]
    assert "use_kl_loss=True it is not used" in left[2]


def test_a_file_of_trl(tmp_path: Path):
    config, left = loaded("trl", TRL, ".yaml", tmp_path)
    assert config.learner.algorithm.reduction == "sequence_mean"
    assert config.learner.optim.betas == (0.9, 0.99) and config.model.dtype == "bfloat16"
    assert config.schedule.groups_per_step == 8  # 16 x 4 completions, 8 of a group
    assert config.learner.algorithm.kl.coef == 0.04
    assert left[0] == "use_vllm=True" and "multiply by their number of devices" in left[1]


def test_a_command_of_openrlhf(tmp_path: Path):
    config, left = loaded("openrlhf", OPENRLHF, ".sh", tmp_path)
    assert config.learner.algorithm.name == "reinforce++_baseline"
    assert (config.learner.algorithm.clip_low, config.learner.algorithm.clip_high) == (0.2, 0.27)
    assert config.learner.zero.stage == 3 and config.model.path == "meta/llama"
    assert left == ["packing_samples=True"]


@pytest.mark.parametrize(
    ("system", "text", "expected"),
    [
        ("trl", "epsilon: 0.1", {"clip_low": 0.1, "clip_high": 0.1}),
        ("trl", "epsilon_high: 0.28\nepsilon: 0.2", {"clip_low": 0.2, "clip_high": 0.28}),
        ("trl", "loss_type: dr_grpo", {"name": "dr_grpo", "scale": "group"}),
        ("trl", "scale_rewards: none\nloss_type: dr_grpo", {"scale": "none"}),
        (
            "trl",
            "per_device_train_batch_size: 4\nsteps_per_generation: 8\nnum_generations: 8\n"
            "gradient_accumulation_steps: 4",
            {"minibatches": 2},
        ),
        (
            "verl",
            "actor_rollout_ref: {actor: {clip_ratio_high: 0.28, clip_ratio: 0.2}}",
            {"clip_low": 0.2, "clip_high": 0.28},
        ),
        (
            "verl",
            "data: {train_batch_size: 64}\nactor_rollout_ref: {actor: {ppo_mini_batch_size: 16, "
            "use_kl_loss: true, kl_loss_coef: 0.01}}",
            {"minibatches": 4, "kl.coef": 0.01},
        ),
        (
            "verl",
            "algorithm: {use_kl_in_reward: true, kl_ctrl: {kl_coef: 0.02}}",
            {"kl.coef": 0.02, "kl.placement": "reward"},
        ),
        (
            "verl",
            "algorithm: {norm_adv_by_std_in_grpo: false}\nactor_rollout_ref: {actor: "
            "{loss_agg_mode: seq-mean-token-sum-norm, kl_loss_type: low_var_kl}}",
            {"scale": "none", "reduction": "constant_length", "kl.estimator": "k3"},
        ),
        (
            "openrlhf",
            "rollout_batch_size: 128\nn_samples_per_prompt: 8\ntrain_batch_size: 256",
            {"minibatches": 4},
        ),
        ("trl", "vllm_importance_sampling_correction: false", {"correction.kind": "none"}),
        ("trl", "vllm_importance_sampling_cap: 5", {"correction.high": 5.0}),
    ],
)
def test_numbers_that_depend_on_one_another(system: str, text: str, expected: dict, tmp_path: Path):
    config, _ = loaded(system, text, ".yaml", tmp_path)
    for name, value in expected.items():
        found = config.learner.algorithm
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value, name


def test_a_batch_that_is_no_whole_number_of_groups_is_left_to_people(tmp_path: Path):
    text = "per_device_train_batch_size: 12\nnum_generations: 8"
    config, left = loaded("trl", text, ".yaml", tmp_path)
    assert config.schedule.groups_per_step == 32  # our default
    assert left[0] == "per_device_train_batch_size=12" and "no whole number of groups" in left[1]


def test_what_is_off_with_them_and_what_has_two_files(tmp_path: Path):
    text = "data: {train_files: [a, b]}\ntrainer: {test_freq: -1, save_freq: -1}"
    config, left = loaded("verl", text, ".yaml", tmp_path)
    assert left == ["data.train_files=['a', 'b']"] and config.checkpoint.every == 0


def test_dapo_of_verl(tmp_path: Path):
    text = (
        "algorithm: {filter_groups: {enable: true}}\n"
        "reward_model: {overlong_buffer: {enable: true, len: 512, penalty_factor: 0.5}}\n"
        "data: {max_response_length: 2048}\n"
        "actor_rollout_ref: {rollout: {val_kwargs: {temperature: 0}}}"
    )
    config, left = loaded("verl", text, ".yaml", tmp_path)
    assert config.schedule.uniform_groups == "discard"
    assert (config.rewards.overlong_buffer, config.rewards.overlong_penalty) == (512, 0.5)
    assert left == [] and config.eval.samples == 1  # which is greedy


def test_a_kl_term_in_two_places_is_said(tmp_path: Path):
    text = (
        "algorithm: {use_kl_in_reward: true, kl_ctrl: {kl_coef: 0.02}}\n"
        "actor_rollout_ref: {actor: {use_kl_loss: true, kl_loss_coef: 0.01}}"
    )
    config, left = loaded("verl", text, ".yaml", tmp_path)
    assert config.learner.algorithm.kl.coef == 0.01
    assert left == [
        "algorithm.use_kl_in_reward=True: with us the KL term is in one place",
        "algorithm.kl_ctrl.kl_coef=0.02: with us the KL term is in one place",
    ]


def options_of(system: str, text: str, folder: Path, suffix: str = ".yaml") -> tuple[dict, list]:
    file = folder / f"theirs{suffix}"
    file.write_text(text)
    found = translate(system, file)
    return found.options, found.left


def test_variables_of_a_script_are_put_in_and_others_left(tmp_path: Path):
    text = """
train_prompt_bsz=512
export MODEL="Qwen/Qwen2.5-7B"
python3 -m verl.trainer.main_ppo data.train_batch_size=${train_prompt_bsz} \\
    actor_rollout_ref.actor.ppo_mini_batch_size=$((train_prompt_bsz/16)) \\
    actor_rollout_ref.model.path=$MODEL data.seed=${SEED:-7} \\
    actor_rollout_ref.actor.use_kl_loss=${use_kl} data.train_files=$HOME/data/x.parquet
"""
    options, left = options_of("verl", text, tmp_path, ".sh")
    assert options["schedule.groups_per_step"] == 512 and options["seed"] == 7
    assert options["model.path"] == "Qwen/Qwen2.5-7B"
    assert options["prompts.dataset"] == str(Path.home() / "data" / "x.parquet")
    said = {each.partition("=")[0]: each for each in left}
    for name in ("actor_rollout_ref.actor.use_kl_loss", MINIBATCH):
        assert said[name].endswith("its value is not in the file"), left
    assert "learner.algorithm.minibatches" not in options


def test_what_is_not_said_is_their_default(tmp_path: Path):
    options, _ = options_of("openrlhf", "--pretrain a --prompt_data b", tmp_path, ".sh")
    assert options["learner.algorithm.name"] == "ppo" and options["sampler.group_size"] == 1
    assert options["learner.algorithm.minibatches"] == 8  # of 1,024 completions, 128 at a time
    assert options["learner.optim.betas"] == [0.9, 0.95] and options["learner.critic.lr"] == 9e-6
    options, _ = options_of("verl", "data: {seed: 1}", tmp_path)
    assert options["learner.algorithm.minibatches"] == 4 and options["sampler.group_size"] == 1
    options, left = options_of("trl", "seed: 1", tmp_path)
    assert options["sampler.sampling.max_tokens"] == 256 and left == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_defaults_are_options_that_are_known(system: str):
    assert set(DEFAULTS[system]) <= {*SYSTEMS[system], MINIBATCH, "train_batch_size"}


@pytest.mark.parametrize(
    ("system", "text", "options", "told"),
    [
        ("trl", "use_peft: false\nlora_r: 16", {"model.lora.rank": None}, "without use_peft"),
        ("trl", "use_peft: true", {"model.lora.rank": 16, "model.lora.alpha": 32}, ""),
        (
            "trl",
            "vllm_importance_sampling_correction: false\n"
            "vllm_importance_sampling_mode: token_truncate",
            {"learner.algorithm.correction.kind": "none"},
            "",
        ),
        ("trl", "top_k: -1", {"sampler.sampling.top_k": 0}, ""),
        ("trl", "warmup_steps: 0.03", {"learner.optim.warmup_steps": None}, "warmup_steps=0.03"),
        ("trl", "save_steps: 0.1", {"checkpoint.every": None}, "save_steps=0.1"),
        ("trl", 'run_name: "my run, lr 1e-6"', {"name": "my-run-lr-1e-6"}, ""),
        (
            "verl",
            "reward_model: {overlong_buffer: {enable: false, len: 512}}",
            {"rewards.overlong_buffer": None},
            "without reward_model.overlong_buffer.enable=True",
        ),
        (
            "verl",
            "algorithm: {use_kl_in_reward: true}",
            {"learner.algorithm.kl.estimator": "k1", "learner.algorithm.kl.placement": "reward"},
            "",
        ),
        (
            "verl",
            "algorithm: {adv_estimator: grpo}\ncritic: {optim: {lr: 1e-5}}\n"
            "actor_rollout_ref: {rollout: {n: 8}}",
            {"learner.critic.lr": None},
            "the algorithm has no critic",
        ),
        (
            "openrlhf",
            "bf16: false\ngradient_checkpointing: false\nuse_kl_loss: false\nuse_wandb: null",
            {
                "model.dtype": None,
                "model.gradient_checkpointing": False,
                "learner.algorithm.kl.placement": None,
                "logging.trackers": None,
            },
            "",
        ),
        (
            "openrlhf",
            "rollout.n_samples_per_prompt: 4\nactor.model_name_or_path: m\nds.zero_stage: 3",
            {"sampler.group_size": 4, "model.path": "m", "learner.zero.stage": 3},
            "",
        ),
        (
            "openrlhf",
            "use_wandb: key\nuse_tensorboard: folder",
            {"logging.trackers": ["tensorboard", "wandb"]},
            "",
        ),
    ],
)
def test_switches_shares_and_names(
    system: str, text: str, options: dict, told: str, tmp_path: Path
):
    found, left = options_of(system, text, tmp_path)
    assert {name: found.get(name) for name in options} == options
    assert told in "\n".join(left) if told else left == []


def test_what_a_recipe_lacks_is_said(tmp_path: Path):
    file = tmp_path / "theirs.yaml"
    file.write_text("loss_type: grpo\nnum_generations: 1\n")
    assert "# to be settled: " in translate("trl", file).text("theirs.yaml")


def test_newer_names_lead_to_older_ones():
    assert set(RENAMED.values()) <= set(SYSTEMS["openrlhf"])


def test_a_value_of_several_lines_stays_in_its_comment(tmp_path: Path):
    config, left = loaded("trl", 'system_prompt: "a\\nseed: 5"', ".yaml", tmp_path)
    assert config.seed == 1 and left == [r"system_prompt='a\nseed: 5'"]


def ours_of(system: str, name: str) -> set[str]:
    """The options that some value of theirs sets."""
    samples = (1, "grpo", "group", [1, 2], "true", "token", "token-mean", "token_mask", "k1", False)
    found: set[str] = set()
    for sample in samples:
        try:
            found |= set(SYSTEMS[system][name](sample))
        except (KeyError, ValueError, TypeError, IndexError):
            continue
    return {option.replace("betas.0", "betas").replace("betas.1", "betas") for option in found}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_option_of_ours_that_is_named_is_there(system: str):
    for name in SYSTEMS[system]:
        found = ours_of(system, name)
        assert found and found <= {*options()}, name


PAGE = (ROOT / "docs" / "coming_from.md").read_text()
TITLES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_tables_of_the_page_are_what_the_command_does(system: str):
    [section] = re.findall(rf"^## {TITLES[system]}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    tables = [
        {theirs: set(re.findall(r"`([^`]+)`", ours)) for theirs, ours in rows}
        for rows in (
            re.findall(r"^\| `([^`]+)` \| ([^|]+)\|", table, re.M)
            for table in re.findall(r"(?:^\|.*\n)+", section, re.M)
        )
    ]
    assert tables[0] == {name: ours_of(system, name) for name in SYSTEMS[system]}
    names = {theirs: {ours} for ours, theirs in aliases.TABLES.get(system, {}).items()}
    assert tables[1:] == ([names] if names else [])


def test_the_commands_of_the_page(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    (tmp_path / "train.jsonl").write_bytes((tiny / "train.jsonl").read_bytes())
    (tmp_path / "theirs.yaml").write_text(
        f"model_name_or_path: {tiny / 'model'}\ndataset_name: train.jsonl\nlearning_rate: 1e-6\n"
    )
    said = []
    for line in block.strip().splitlines():
        command, _, target = line.partition("#")[0].removeprefix("python -m cluster").partition(">")
        assert main(command.split()) == 0, line
        said.append(capsys.readouterr().out)
        if target:
            (tmp_path / target.strip()).write_text(said[-1])
    _, every_option, data = said
    assert re.search(r"learner.optim.lr\s+1e-06", every_option)
    assert "longest" in data


def test_what_is_no_file_of_theirs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["config", "from-trl", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "empty.yaml").write_text("")
    assert main(["config", "from-trl", str(tmp_path / "empty.yaml")]) == 2
    assert main(["config", "from-jax", str(tmp_path / "empty.yaml")]) == 2
    said = capsys.readouterr().err
    assert "there is no file" in said and "has no options" in said and "is none of trl" in said


def test_what_the_command_prints_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "theirs.yaml").write_text(TRL)
    assert main(["config", "from-trl", str(tmp_path / "theirs.yaml")]) == 0
    said = capsys.readouterr().out
    assert "# not translated: use_vllm=True" in said
    (tmp_path / "ours.yaml").write_text(said)
    assert load([str(tmp_path / "ours.yaml")], []).config.sampler.group_size == 8


def test_losses_of_trl_are_rows_of_ours():
    for row in peers.LOSSES.values():
        assert row["name"] in peers.ALGORITHMS
