"""The planner: its simulator keeps the loop's rules, its arithmetic the formulas."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import cohort, small_recipe

from cluster.cli import main
from cluster.config import RunConfig, load
from cluster.planner.calibrate import Fit
from cluster.planner.costs import GPUS, Constants, Measured, Model, Modelled, Table, volume
from cluster.planner.plan import best_first, describe, learner_bytes, splits
from cluster.planner.simulate import VirtualRun, Workload, simulate
from cluster.planner.virtual import in_virtual_time
from learner.memory import Architecture
from learner.packing import Work

NOTHING = Constants(**dict.fromkeys(Constants.__dataclass_fields__, 0.0))
PLAIN = replace(
    NOTHING, overlap=1.0, per_decode_step=1e-2, per_update=0.3, push=0.03, exchange=0.01, pause=0.01
)
"""A decode step takes 10 ms, an update 300, a publish 50, and nothing else any time."""
ALIKE = Workload(prompts=(10,), lengths=((20, 20),), rewards=((0.0, 1.0),))
SIZES = Architecture(
    parameters=7_600_000_000, layers=28, hidden=3584, intermediate=18944, kv=512, vocabulary=152064
)
SEVEN = Model(SIZES, Work(), packs=False, shares=False)


def recipe(**options: object) -> RunConfig:
    words = {
        "model.path": "none",
        "sampler.group_size": 2,
        "schedule.groups_per_step": 4,
        "sampler.max_running": 8,
        "sampler.sampling.max_tokens": 64,
        **options,
    }
    return load([], [f"{key}={value}" for key, value in words.items()]).config


def seconds_of(config: RunConfig, constants: Constants = PLAIN, load: Workload = ALIKE) -> float:
    return simulate(config, Measured(constants, config, SEVEN), load).step_seconds


def test_virtual_time_turns_the_clock_and_waits_for_nothing():
    async def work() -> float:
        clock = asyncio.get_running_loop().time
        started = clock()
        await asyncio.gather(asyncio.sleep(1e6), asyncio.sleep(3e6))
        return clock() - started

    assert in_virtual_time(work) == pytest.approx(3e6)


def test_a_synchronous_step_is_the_sum_of_its_parts():
    # 20 tokens at 10 ms, the update, the publish
    assert seconds_of(recipe()) == pytest.approx(0.2 + 0.3 + 0.05)
    half = recipe(**{"sampler.max_running": 4})
    assert seconds_of(half) == pytest.approx(0.4 + 0.3 + 0.05), "two waves"
    assert seconds_of(half.model_copy(update={"sampler": half.sampler.model_copy(
        update={"replicas": 2})})) == pytest.approx(0.2 + 0.3 + 0.05)  # fmt: skip


def test_an_asynchronous_step_is_its_slower_side():
    ahead = recipe(**{"schedule.max_staleness": 2})
    found = simulate(ahead, Measured(PLAIN, ahead, SEVEN), ALIKE)
    assert found.step_seconds == pytest.approx(0.33), (
        "the learner's own: the rest goes on meanwhile"
    )
    assert found.learner_idle == pytest.approx(0.03 / 0.33)
    assert found.staleness_max == 2.0
    slow = replace(PLAIN, per_decode_step=4e-2)
    assert 0.8 < seconds_of(ahead, slow) < 0.83, "the samplers, and their pauses"


def test_neighbours_on_the_same_cores_slow_each_other():
    ahead = recipe(**{"schedule.max_staleness": 2})
    both = replace(PLAIN, overlap=1.5, per_decode_step=2e-2)
    assert seconds_of(ahead, both) > 1.2 * seconds_of(ahead, replace(both, overlap=1.0))
    assert seconds_of(recipe(), both) == pytest.approx(seconds_of(recipe(), replace(both, overlap=1.0)))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
def test_what_becomes_of_completions_at_an_update_has_its_price(in_flight: str):
    load = Workload(prompts=(10,), lengths=((5, 60), (30, 8)), rewards=((0.0, 1.0),) * 2)
    costs = replace(PLAIN, per_update=0.05, per_prompt_token=1e-3)
    config = recipe(**{"schedule.max_staleness": 2, "schedule.in_flight": in_flight})
    kept = config.model_copy(update={"sampler": config.sampler.model_copy(
        update={"keep_kv": True})})  # fmt: skip
    found = seconds_of(config, costs, load)
    if in_flight == "keep":
        assert found > seconds_of(kept, costs, load), "computing keys and values anew takes time"
    else:
        keeps = recipe(**{"schedule.max_staleness": 2})
        assert found > seconds_of(keeps, replace(costs, per_prompt_token=0), load)


def test_who_has_the_long_prompts_gets_fewer(monkeypatch: pytest.MonkeyPatch):
    load = Workload.lognormal(prompt=10, mean=20, most=64, size=2)
    config = recipe(**{
        "sampler.max_running": 4, "sampler.replicas": 4, "schedule.groups_per_step": 32
    })  # fmt: skip
    costs = Measured(PLAIN, config, SEVEN)
    by_length = simulate(config, costs, load, steps=40).step_seconds
    monkeypatch.setattr(VirtualRun, "_expected", lambda *_: 1.0)
    assert by_length < 0.99 * simulate(config, costs, load, steps=40).step_seconds


def test_groups_without_signal_are_sampled_again_in_the_forecast_too():
    uniform = Workload(
        prompts=(10, 10), lengths=((20, 20), (20, 20)), rewards=((0.0, 1.0), (1.0, 1.0))
    )
    train, discard = recipe(), recipe(**{"schedule.uniform_groups": "discard"})
    assert seconds_of(discard, load=uniform) > seconds_of(train, load=uniform) + 0.1


def test_growing_groups_go_on_where_they_were():
    """A recorded group of two rounds, the second of which ends it: two rounds, not three."""
    grown = Workload(prompts=(10,), lengths=((20, 20, 20, 20),), rewards=((0.0, 0.0, 1.0, 0.0),))
    found = {}
    for most in (0, 6):
        config = recipe(**{"schedule.max_group_size": most, "sampler.max_running": 64})
        found[most] = simulate(config, Measured(PLAIN, config, SEVEN), grown)
    assert found[6].step_seconds == pytest.approx(found[0].step_seconds + 0.2)
    per_step = {most: f.completions_per_second * f.step_seconds for most, f in found.items()}
    assert per_step == pytest.approx({0: 8, 6: 16})


def test_a_search_that_never_ends_is_one_plain_error():
    uniform = Workload(prompts=(10,), lengths=((20, 20),), rewards=((1.0, 1.0),))
    config = recipe(**{"schedule.uniform_groups": "discard"})
    with pytest.raises(RuntimeError, match="groups had uniform rewards"):
        simulate(config, Measured(PLAIN, config, SEVEN), uniform)


def test_a_critic_needs_twice_the_memory_and_adapters_next_to_none():
    plain, ppo = recipe(), recipe(**{"learner.algorithm.name": "ppo"})
    lora = recipe(**{"model.lora.rank": 16})
    states = 16 * 7.6e9
    assert learner_bytes(ppo, SIZES) - learner_bytes(plain, SIZES) == pytest.approx(states, rel=0.3)
    assert learner_bytes(lora, SIZES) < learner_bytes(plain, SIZES) - 0.6 * states


def test_the_volume_of_an_update_is_what_the_learner_plans():
    config = recipe(**{"learner.micro_batch_tokens": 64, "learner.packing": "false"})
    prompts, lengths = np.full(4, 10), np.array([10, 22, 22, 10])
    found = volume(config, SEVEN, Table(np.arange(4), prompts, lengths))
    # Two rows of 32 slots, then two of 20; a logit takes 6 * hidden * vocabulary.
    slots, logits = 2 * 32 + 2 * 20, 64
    assert found.micro_batches == 2
    assert found.flops == pytest.approx(slots + logits * 6 * 3584 * 152064)


def test_constants_are_found_again_and_none_is_negative():
    rng = np.random.default_rng(0)
    rows = rng.uniform(1, 100, (60, 3))
    seconds = rows @ [0.5, 0.02, 0.0] * rng.normal(1, 0.01, 60)
    fit = Fit(("a", "b", "c"))
    for row, spent in zip(rows.tolist(), seconds.tolist(), strict=True):
        fit.add(row, spent)
    found = fit.solved()
    assert found["a"] == pytest.approx(0.5, rel=0.02) and found["b"] == pytest.approx(0.02, rel=0.3)
    assert 0 <= found["c"] < 0.01
    falling = Fit(("a", "b"))
    for x in range(1, 9):
        falling.add((1, x), 9.0 - x)
    assert falling.solved()["b"] == 0.0 and falling.solved()["a"] > 0


def test_a_gpu_reads_weights_and_caches_or_computes():
    config, h100 = recipe(), GPUS["h100"]
    costs = Modelled(h100, config, SEVEN)
    alone = costs.decode(1, 1000.0) - 1.5e-3
    assert alone == pytest.approx(2 * 7.6e9 / (3.35e12 * 0.65), rel=0.01), "the weights, once"
    many = costs.decode(100_000, 0.0) - 1.5e-3
    assert many == pytest.approx(2 * 7.6e9 * 1e5 / (989e12 * 0.5), rel=0.01), "arithmetic"
    wide = recipe(**{"sampler.tensor_parallel": 4})
    assert Modelled(h100, wide, SEVEN).decode(1, 1000.0) - 1.5e-3 == pytest.approx(alone / 4)


def test_splits_use_every_gpu_and_what_fits_comes_first():
    config = recipe(**{"sampler.tensor_parallel": 2, "learner.zero.stage": 3})
    for split in splits(config, SIZES, GPUS["h200"], 16):
        used = split.learner.ranks + 2 * split.sampler.replicas
        assert used == 16 and 8 % split.learner.ranks == 0
        assert learner_bytes(split, SIZES) < 0.9 * 141e9
    load = Workload.lognormal(prompt=20, mean=30, most=64, size=2)
    found = best_first(config, SEVEN, load, gpu=GPUS["h200"], gpus=16)
    times = [split.forecast.step_seconds for split in found if split.forecast]
    assert times == sorted(times) and len(times) == len(found)


def test_lognormal_lengths_have_their_mean_and_siblings_are_alike():
    load = Workload.lognormal(prompt=5, mean=100, most=10_000, size=64)
    logs = np.log(np.array(load.lengths))
    assert load.mean_length == pytest.approx(100, rel=0.2)
    assert logs.mean(axis=1).var() == pytest.approx(0.5, rel=0.2), "half of it between prompts"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "plan needs one of --gpu"),
        (["--gpu", "h100", "--measure", "x"], "plan needs one of --gpu"),
        (["--gpu", "tpu"], "--gpu tpu is not known; there are a100"),
        (["--gpu", "h100", "--nodes", "two"], "--nodes is a whole number"),
        (["--gpu", "h100", "--like", "/nowhere"], "no recorded tables"),
        (["--gpu", "h100", "--mean-length", "9999"], "is not within sampler.sampling.max_tokens"),
        (["--gpu", "h100", "--nodes", "1", "--gpus-per-node", "1"], "1 GPUs cannot be split"),
        (["--constants", "/nowhere.json"], "does not hold what `plan --measure` writes"),
        (["--gpu", "h100", "model.path="], "model.path is not set"),
        (["--gpu", "h100", "learner.algorithm.name=sft"], "a supervised recipe samples nothing"),
        (["--gpu", "h100", "sampler.tensor_parallel=16"], "is more than the 8 GPUs of a node"),
        (["--measure", "/nowhere/c.json"], "no folder /nowhere"),
    ],
)
def test_bad_words_are_refused(
    words: list[str], says: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["plan", *small_recipe(tmp_path, tiny, name="p"), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_for_a_cluster_that_is_not_here(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = [*small_recipe(tmp_path, tiny, name="p"), "--gpu", "h200", "--nodes", "1"]
    assert main(["plan", *words]) == 0
    printed = capsys.readouterr().out
    assert "cluster: 8 h200" in printed and "quickest: learner.ranks=" in printed
    assert "not measured" in printed, "it must say what it is"


def test_a_model_too_large_says_what_would_help(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "huge"
    folder.mkdir()
    shape = {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568,
             "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
             "vocab_size": 152064}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    assert describe(str(folder)).sizes.parameters == pytest.approx(72.7e9, rel=0.01)
    words = [*small_recipe(tmp_path, tiny, name="p"), f"model.path={folder}", "--gpu", "l40s"]
    assert main(["plan", *words]) == 2
    assert "nothing fits" in (said := capsys.readouterr().err) and "tensor_parallel" in said


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_constants_of_this_machine_plan_its_runs(tiny: Path, tmp_path: Path):
    """Measured with the recipe's own actors; `benchmarks/run.py B13` says how true they are."""
    file = tmp_path / "constants.json"
    words = small_recipe(tmp_path, tiny, name="p")
    assert "wrote" in cohort("plan", *words, "--measure", str(file))
    found = Constants.read(file)
    assert found.per_decode_step + found.per_decoded_token > 0
    assert found.per_update + found.per_micro_batch + found.per_flop > 0
    assert min(found.push, found.exchange, found.pause) > 0 and found.overlap >= 1
    planned = cohort("plan", *words, "--constants", str(file))
    assert "max_staleness=0 (the recipe's)" in planned and "max_staleness=4" in planned
