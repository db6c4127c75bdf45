"""Nodes that join, are cut off, come back, and hear and are heard late: the run on them ends with
the weights of one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from nodes import PORT, Nodes, possible
from runs import until_gone, wait_until
from survival import Live, check_equal, check_record

from cluster.tools import audit

WHY_NOT = possible()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
OPTIONS = {"learner.ranks": "1", "sampler.replicas": "1", "sampler.max_replicas": "2"}
ADDRESS = {"cluster.address": f"{Nodes.address(0)}:{PORT}"}


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one machine, without any nodes."""
    run = Live(tmp_path_factory.mktemp("calm"), tiny, "calm", **OPTIONS)
    run.end()
    check_record(run.folder, 8)
    return run.folder


@pytest.fixture
def nodes():
    made = Nodes(3)
    yield made
    Live.end_all()
    made.close()


def driver(nodes: Nodes, *arguments: str, **env: str) -> subprocess.Popen:
    """On the head's node."""
    return nodes.run(
        0,
        *(sys.executable, "-m", "cluster", *arguments),
        env={**nodes.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started(nodes: Nodes, tiny: Path, folder: Path, name: str) -> Live:
    """A run with a learner and a sampler on node 1, and a sampler that joined with node 2."""
    nodes.start_ray(0, cpus=0)
    wait_until(lambda: any(nodes.folder.rglob("raylet*")), 60, "the head's raylet")
    nodes.start_ray(1, cpus=1)
    time.sleep(5)
    run = Live(folder, tiny, name, begin=partial(driver, nodes), **OPTIONS, **ADDRESS)
    run.until_step(1)
    run.hold("reward.before_return")
    assert nodes.where(run.pid("learner-0")) == nodes.where(run.pid("sampler-0")) == 1
    nodes.start_ray(2, cpus=2)
    run.until(lambda: any((run.folder / "stacks").glob("sampler-1.*")), "a second sampler")
    assert nodes.where(run.pid("sampler-1")) == 2
    wait_until(lambda: "sampler/1 joined" in run.output, 120, "sampler/1 among those that serve")
    run.let_go("reward.before_return")
    return run


def check(run: Live, undisturbed: Path, lost: set[str]) -> None:
    check_record(run.folder, 8)
    good = [loss["who"] for loss in run.losses() if loss["outcome"] == "replaced"]
    assert sorted(good) == sorted(lost), run.losses()
    # Ray may put a newcomer onto a node of which it does not know yet that it is gone.
    assert {loss["who"] for loss in run.losses()} == lost, run.losses()
    check_equal(run.folder, undisturbed)
    assert audit.verify(run.folder) == 0


def test_the_node_of_the_learner_is_cut_off_and_comes_back(
    nodes: Nodes, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = started(nodes, tiny, tmp_path, "cut")
    old = {run.pid("learner-0"), run.pid("sampler-0")}
    lost = {"learner/0", "sampler/0"}
    if nodes.where(run.pid("scorer-0")) == 1:  # it needs no core, so it may be anywhere
        lost.add("scorer/0")
    nodes.cut(1)
    begun = time.monotonic()
    run.hold("reward.before_return")  # a run of seconds would end before they are back
    run.until_replaced(len(lost))
    print(f"made good {time.monotonic() - begun:.0f} s behind the cut")
    assert nodes.where(run.pid("learner-0")) == nodes.where(run.pid("sampler-0")) == 2
    nodes.heal(1)  # what lives there hears that it was given up
    wait_until(lambda: not old & set(nodes.processes(1)), 120, "the end of those given up")
    run.let_go("reward.before_return")
    run.end()
    check(run, undisturbed, lost)


def test_a_node_that_hears_and_is_not_heard_is_given_up(
    nodes: Nodes, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = started(nodes, tiny, tmp_path, "oneway")
    nodes.switch.lost.add(2)
    begun = time.monotonic()
    run.hold("reward.before_return")
    wait_until(lambda: "sampler/1 is lost" in run.output, 120, "the loss of sampler/1")
    print(f"found {time.monotonic() - begun:.0f} s behind the last frame")
    run.let_go("reward.before_return")
    run.end()
    assert "sampler/1" in {loss["who"] for loss in run.losses()}
    assert {loss["who"] for loss in run.losses()} <= {"sampler/1", "scorer/0"}
    check_record(run.folder, 8)
    check_equal(run.folder, undisturbed)


def test_frames_that_take_half_a_second_make_it_slow_and_nothing_else(
    nodes: Nodes, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = started(nodes, tiny, tmp_path, "late")
    done = run.steps_done
    nodes.switch.delay = 0.5
    run.until_step(done + 2)
    nodes.switch.delay = 0.0
    run.end()
    check(run, undisturbed, set())


def test_without_its_head_a_run_ends_and_goes_on_in_another_cluster(
    nodes: Nodes, undisturbed: Path, tiny: Path, tmp_path: Path
):
    run = started(nodes, tiny, tmp_path, "head")
    run.until_step(3)
    run.hold("reward.before_return")
    run.until(lambda: bool(run.held("reward.before_return")), "a group at the scorer")
    [gcs] = [
        pid
        for pid in nodes.processes(0)
        if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    ]
    done = run.steps_done
    os.kill(gcs, signal.SIGKILL)
    begun = time.monotonic()
    output = run.end(expect=1, seconds=90)
    print(f"ended {time.monotonic() - begun:.0f} s behind the head")
    assert "has not answered for 30 s: the cluster is lost" in output, output[-3000:]
    until_gone(run.folder, 75)
    for index in (0, 1, 2):
        nodes.end_ray(index)
    run.let_go("reward.before_return")
    nodes.start_ray(0, cpus=0)
    time.sleep(5)
    nodes.start_ray(1, cpus=2)
    time.sleep(5)
    run.again()
    assert f"resumed at step {done}" in run.end()
    check(run, undisturbed, set())
