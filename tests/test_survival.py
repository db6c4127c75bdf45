"""Processes of real runs killed and frozen: the run finishes with the data and the weights of one
that nobody disturbed."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import Disk, Failing, Small, WithQuota
from runs import jsonl, metrics, until_gone
from survival import Live, check_equal, check_record
from web import Service, make_reward_model

from cluster.ledger import table_path
from cluster.tools import audit

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Live(tmp_path_factory.mktemp("undisturbed"), tiny, "calm")
    run.end()
    check_record(run.folder, 8)
    assert run.losses() == [] and not (run.folder / "stacks").exists()
    weights = [row["learner/grad_norm"] for row in metrics(run.folder)]
    assert min(weights) > 0, "a step without a gradient proves nothing"
    return run.folder


@pytest.fixture(autouse=True)
def nothing_left():
    """Of a test that failed."""
    yield
    Live.end_all()


def goes_on_to_the_same_end(run: Live, undisturbed: Path) -> str:
    """The same command again, behind an end that left no process; its output."""
    until_gone(run.folder)
    run.again()
    output = run.end()
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)
    return output


def test_a_run_whose_every_part_dies_once_ends_with_the_undisturbed_runs_weights(
    undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "hurt")
    run.until_step(1)

    run.hold("sampler.decode")
    sampler = run.pid("sampler-1")
    run.until_held("sampler.decode", sampler)
    os.kill(sampler, signal.SIGKILL)
    run.hold("reward.before_return")  # a run of seconds would end before it is back
    run.let_go("sampler.decode")
    run.until_replaced(1)
    run.let_go("reward.before_return")

    run.hold("learner.backward")
    rank = run.pid("learner-1")
    run.until_held("learner.backward", rank)
    os.kill(rank, signal.SIGKILL)
    run.let_go("learner.backward")
    run.until_replaced(2)

    run.hold("push.before_switch")
    frozen = run.pid("sampler-0")
    run.until_held("push.before_switch", frozen)
    os.kill(frozen, signal.SIGSTOP)
    run.hold("reward.before_return")
    run.let_go("push.before_switch")
    run.until_replaced(3)
    run.let_go("reward.before_return")

    done = run.steps_done
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    until_gone(run.folder)
    run.again()
    output = run.end()
    assert f"resumed at step {done}" in output or f"resumed at step {done + 1}" in output

    check_record(run.folder, 8)
    found = [(loss["who"], loss["outcome"]) for loss in run.losses()]
    assert found == [
        ("sampler/1", "replaced"),
        ("learner/1", "replaced"),
        ("sampler/0", "replaced"),
    ]
    assert "no sign of life for 15 s" in run.losses()[2]["why"]
    check_equal(run.folder, undisturbed)
    assert audit.verify(run.folder) == 0 and audit.rescore(run.folder, []) == 0
    assert audit.diff(run.folder, undisturbed) == 0


# -- one fault at a time: `make test-slow` ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"]
)
@pytest.mark.parametrize(
    "point", ["sampler.decode", "push.before_switch", "push.before_finish", "idle"]
)
def test_a_sampler_that_is_lost_is_replaced(
    point: str, signal_number: int, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "one")
    run.until_step(1)
    run.hold("reward.before_return")
    if point == "idle":  # all groups are sampled, none is scored
        run.until(lambda: bool(run.held("reward.before_return")), "groups at the scorer")
        victim = run.pid("sampler-1")
    else:
        run.hold(point)
        victim = run.pid("sampler-1")
        run.let_go("reward.before_return")
        run.until_held(point, victim)
        run.hold("reward.before_return")
    os.kill(victim, signal_number)
    begun = time.monotonic()
    if point != "idle":
        run.let_go(point)
    run.until_replaced(1)
    print(f"{point}: back after {time.monotonic() - begun:.0f} s")
    run.let_go("reward.before_return")
    run.end()
    check_record(run.folder, 8)
    assert [(loss["who"], loss["outcome"]) for loss in run.losses()] == [("sampler/1", "replaced")]
    check_equal(run.folder, undisturbed)


@pytest.fixture(scope="module")
def calm_by_stage(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {}
    for stage in (1, 2, 3):
        options = {"learner.zero.stage": str(stage)}
        run = Live(tmp_path_factory.mktemp("stage"), tiny, f"calm{stage}", **options)
        run.end()
        folders[stage] = run.folder
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("point", "rank", "signal_number"),
    [
        ("learner.forward", 0, signal.SIGKILL),
        ("learner.backward", 1, signal.SIGSTOP),
        ("learner.optimizer", 1, signal.SIGKILL),
        ("learner.gather", 0, signal.SIGKILL),
        ("checkpoint.after_shard", 1, signal.SIGKILL),
    ],
)
def test_a_learner_rank_that_is_lost_brings_its_group_back(
    point: str,
    rank: int,
    signal_number: int,
    stage: int,
    calm_by_stage: dict[int, Path],
    tiny: Path,
    tmp_path: Path,
):
    run = Live(tmp_path, tiny, "one", **{"learner.zero.stage": str(stage)})
    run.until_step(1)
    run.hold(point)
    victim = run.pid(f"learner-{rank}")
    run.until_held(point, victim)
    os.kill(victim, signal_number)
    begun = time.monotonic()
    run.let_go(point)
    run.until_replaced(1)
    print(f"ZeRO {stage}, {point}: back after {time.monotonic() - begun:.0f} s")
    run.end()
    check_record(run.folder, 8)
    found = [(loss["who"], loss["outcome"]) for loss in run.losses()]
    assert found == [(f"learner/{rank}", "replaced")]
    check_equal(run.folder, calm_by_stage[stage])


@pytest.mark.slow
def test_a_run_that_lost_all_samplers_gets_new_ones_or_says_that_it_cannot(
    undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "all", **{"cluster.sampler_restarts": "2"})

    def kill_both_while_they_sample() -> None:
        run.hold("sampler.decode")
        victims = {run.pid(f"sampler-{index}") for index in (0, 1)}
        run.until(lambda: victims <= run.held("sampler.decode"), "both sampling")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        run.let_go("sampler.decode")

    run.until_step(1)
    kill_both_while_they_sample()
    run.until_replaced(2)
    done = run.steps_done
    run.until_step(done + 1)
    kill_both_while_they_sample()
    output = run.end(expect=1)
    assert "no sampler is left (2 of cluster.sampler_restarts=2 used)" in output
    goes_on_to_the_same_end(run, undisturbed)


@pytest.mark.slow
def test_an_asynchronous_run_whose_parts_die_keeps_its_bound_and_its_prompts(
    tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "async", **{"schedule.max_staleness": "2", "steps": "30"})
    for step, who in ((1, "sampler-0"), (6, "learner-0"), (12, "sampler-1"), (18, "learner-1")):
        run.until_step(step)
        count = len(run.losses())
        os.kill(run.pid(who), signal.SIGKILL)
        run.hold("reward.before_return")
        run.until_replaced(count + 1)
        run.let_go("reward.before_return")
    run.until_step(24)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    until_gone(run.folder)
    run.again()
    run.end()
    check_record(run.folder, 30, bound=2)
    assert len(run.losses()) == 4


@pytest.mark.slow
def test_a_sampler_joins_a_run_under_way(undisturbed: Path, tiny: Path, tmp_path: Path):
    one = {"sampler.replicas": "1", "sampler.max_replicas": "2"}
    run = Live(tmp_path, tiny, "grows", **one)
    run.until_step(1)
    run.hold("reward.before_return")
    run.until(lambda: any((run.folder / "stacks").glob("sampler-1.*")), "a second sampler")
    time.sleep(30)  # it starts, and is given the weights
    run.let_go("reward.before_return")
    assert "sampler/1 joined after" in run.end()
    check_record(run.folder, 8)
    assert metrics(run.folder)[-1]["faults/samplers_alive"] == 2
    assert run.losses() == []
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "sampler.decode",
        "reward.before_return",
        "learner.backward",
        "push.before_switch",
        "checkpoint.after_shard",
    ],
)
def test_a_preempted_run_ends_within_its_grace_and_goes_on(
    point: str, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "preempted", **{"checkpoint.grace": "8"})
    run.until_step(3)
    run.hold(point)
    run.until(lambda: bool(run.held(point)), f"somebody at {point}")
    done, begun = run.steps_done, time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.end(expect=143, seconds=30)
    print(f"{point}: ended {time.monotonic() - begun:.1f} s after SIGTERM")
    until_gone(run.folder)
    saved = [int(path.name) for path in (run.folder / "checkpoints").glob("[0-9]*")]
    between_updates = point not in ("learner.backward", "checkpoint.after_shard")
    assert (max(saved) == done) or not between_updates, "no checkpoint of the last step"
    run.let_go(point)
    run.again()
    assert f"resumed at step {done}" in run.end()
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 6.0, 10.0])
def test_a_run_that_is_stopped_while_it_starts_leaves_nothing(
    seconds: float, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "early")
    time.sleep(seconds)
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    output = run.end(expect=143, seconds=30)
    print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM")
    assert "stopped by SIGTERM" in output and "Traceback" not in output
    goes_on_to_the_same_end(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8.0, 10.0, 12.0, 14.0])
def test_a_driver_that_is_killed_while_it_starts_leaves_nothing(
    seconds: float, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "early")
    time.sleep(seconds)
    run.process.kill()
    run.process.wait()
    until_gone(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "fault"),
    [
        ("sampler-1", "killed"),
        ("sampler-1", "frozen"),
        ("learner-1", "frozen"),
    ],
)
def test_whoever_is_lost_while_a_run_starts_costs_a_start(
    who: str, fault: str, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "start")
    run.until(lambda: any((run.folder / "stacks").glob(f"{who}.*")), f"{who} starts")
    time.sleep(3)  # it has been heard of
    os.kill(run.pid(who), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    assert "all start again" in run.end()
    assert [loss["who"] for loss in run.losses()] == [who.replace("-", "/")]
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_evaluates_evaluates_when_it_goes_on(
    tiny: Path, tmp_path: Path
):
    evaluated = {"eval.dataset": str(tiny / "heldout.jsonl"), "steps": "2"}
    run = Live(tmp_path, tiny, "eval", **evaluated)
    run.hold("reward.before_return")
    run.until(lambda: bool(run.held("reward.before_return")), "an evaluation's group")
    run.process.send_signal(signal.SIGTERM)
    run.end(expect=143, seconds=30)
    run.let_go("reward.before_return")
    run.again()
    run.end()
    check_record(run.folder, 2)
    assert [row["step"] for row in jsonl(run.folder / "evaluations.jsonl")] == [0, 2]


KINDS = {
    "full": lambda folder: Small(folder, "6m"),
    "quota": WithQuota,
    "read-only": Failing,
}


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made = KINDS[request.param](tmp_path / "disk")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["full"], indirect=True)
def test_a_disk_that_is_full_costs_checkpoints_and_nothing_else(
    disk: Disk, undisturbed: Path, tiny: Path
):
    run = Live(disk.folder, tiny, "full", **{"logging.trackers": "[]"})
    run.until(lambda: len(run.losses()) >= 1, "a save that fails with a rank in it")
    disk.mend()
    output = run.end()
    assert "no checkpoint, training goes on: " in output and "is full (" in output, output[-4000:]
    assert {loss["who"] for loss in run.losses()} == {"learner"}
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("disk", list(KINDS), indirect=True)
def test_a_disk_that_takes_no_table_ends_the_run_and_once_it_does_the_run_goes_on(
    disk: Disk, undisturbed: Path, tiny: Path
):
    options = {"logging.trackers": "[]", "checkpoint.every": "0"}
    run = Live(disk.folder, tiny, "tables", **options)
    run.until_step(2)
    disk.spoil()
    output = run.end(expect=1)
    assert f"cannot be written ({disk.says})" in output, output[-2000:]
    assert "the same command goes on" in output and "Traceback" not in output
    disk.mend()
    goes_on_to_the_same_end(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_a_scorer_that_is_lost_costs_nothing(
    fault: str, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "scorer")
    run.until_step(1)
    run.hold("reward.before_return")
    victim = run.pid("scorer-0")
    run.until_held("reward.before_return", victim)
    os.kill(victim, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    run.let_go("reward.before_return")
    assert "scorer/0 is lost" in run.end()
    assert [(loss["who"], loss["outcome"]) for loss in run.losses()] == [("scorer/0", "replaced")]
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
def test_a_clock_that_jumps_disturbs_nothing(undisturbed: Path, tiny: Path, tmp_path: Path):
    """Of all processes of the run, Ray's included: a day ahead, then an hour behind."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    shim, clock = tmp_path / "clock.so", tmp_path / "clock"
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)

    def move_by(seconds: int) -> None:
        """In place: each process has the file mapped."""
        with open(clock, "r+b") as file:
            file.write(struct.pack("l", seconds))

    clock.write_bytes(struct.pack("l", 0))
    env = {"LD_PRELOAD": str(shim), "COHORT_TEST_CLOCK": str(clock)}
    run = Live(tmp_path, tiny, "jumps", **env)
    run.until_step(1)
    move_by(86_400)
    run.until_step(3)
    move_by(-3_600)
    run.end()
    times = [row["time"] - time.time() for row in metrics(run.folder)]
    assert max(times) > 80_000 and min(times) < -3_000, f"no clock jumped: {times}"
    assert run.losses() == []
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["quality", "remote"])
def test_a_reward_model_or_a_service_that_is_lost_costs_nothing(
    role: str, tiny: Path, tmp_path: Path
):
    service = Service()
    service.respond = lambda asked: {
        "rewards": [len(each) % 5 / 4 for each in asked["completions"]]
    }
    (tmp_path / "lost").mkdir()
    model = make_reward_model(tiny / "model", tmp_path / "rm")
    verifiers = {
        "quality": {"use": "reward_model", "path": str(model), "weight": 0.1},
        "remote": {"use": "http", "url": service.url, "weight": 1.0},
    }
    options = {"rewards.verifiers": json.dumps(verifiers), "steps": "6"}
    try:
        calm = Live(tmp_path / "calm", tiny, "calm", **options)
        calm.end()
        run = Live(tmp_path / "lost", tiny, "judges", **options)
        run.until_step(1)
        os.kill(run.pid(f"{role}-0"), signal.SIGKILL)
        run.until_step(3)
        run.until_replaced(1)
        os.kill(run.pid(f"{role}-0"), signal.SIGSTOP)
        assert run.end().count(f"{role}/0 is lost") == 2
    finally:
        service.close()
    assert [(loss["who"], loss["outcome"]) for loss in run.losses()] == [
        (f"{role}/0", "replaced")
    ] * 2
    check_record(run.folder, 6)
    check_equal(run.folder, calm.folder)


def flip_in_shared_memory(run: Live, content: bytes) -> None:
    """One bit of an object in the store of the run's Ray, which holds it in shared memory."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = str(run.temporary).encode() in (process / "environ").read_bytes()
            if not is_ours or (process / "comm").read_text().strip() != "raylet":
                continue
        except OSError:
            continue
        with open(process / "mem", "r+b", buffering=0) as memory:
            for line in (process / "maps").read_text().splitlines():
                if "rw-s" not in line or "/dev/shm/plasma" not in line:
                    continue
                start, end = (int(each, 16) for each in line.split()[0].split("-"))
                memory.seek(start)
                found = memory.read(end - start).find(content)
                if found >= 0:
                    at = found + len(content) // 2
                    memory.seek(start + at)
                    memory.write(bytes([content[len(content) // 2] ^ 4]))
                    return
    raise AssertionError("the table is in no object store")


@pytest.mark.slow
def test_a_table_that_is_damaged_in_shared_memory_is_sent_again(
    undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = Live(tmp_path, tiny, "flipped")
    run.until_step(1)
    run.hold("learner.open")
    rank = run.pid("learner-1")
    run.until_held("learner.open", rank)
    flip_in_shared_memory(run, table_path(run.folder / "rollouts", run.steps_done + 1).read_bytes())
    run.let_go("learner.open")
    run.end()
    [loss] = run.losses()
    assert (loss["who"], loss["outcome"]) == ("table for update", "sent again")
    assert "does not match its digest" in loss["why"]
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


@pytest.mark.slow
def test_a_run_of_other_settings_is_refused_with_the_difference(tiny: Path, tmp_path: Path):
    run = Live(tmp_path, tiny, "changed")
    run.until_step(3)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    plain = list(run.arguments)
    changes = {
        "sampler.group_size=8": "sampler.group_size: 4 there, 8 here",
        "learner.ranks=1": "learner.ranks: 2 there, 1 here",
        "learner.zero.stage=3": "learner.zero.stage",
        "schedule.max_staleness=1": "schedule.max_staleness: 0 there, 1 here",
        "seed=9": "seed",
    }
    for change, said in changes.items():
        run.arguments = [*plain, change]
        run.output = ""
        run.again()
        assert said in run.end(expect=2), change
    run.arguments, run.output = [*plain, "steps=9"], ""
    run.again()
    assert "resumed at step" in run.end()
    check_record(run.folder, 9)
    fewer = ["learner.ranks=1", "checkpoint.reshard=true", "steps=10"]
    run.arguments, run.output = [*plain, *fewer], ""
    run.again()
    output = run.end()
    assert "goes on resharded" in output and "resumed at step 9" in output
    check_record(run.folder, 10)
    assert not list((run.folder / "checkpoints").glob("resharded-*"))
