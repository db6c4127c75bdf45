"""`ray job submit` against a running head: same run, truthful status, nothing left by a stop."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import free_port
from runs import ROOT, metrics, processes_of, small_recipe, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

RAY = str(Path(sys.executable).with_name("ray"))


class Head:
    """A Ray head on loopback with a token of its own."""

    def __init__(self, folder: Path) -> None:
        self.dashboard = free_port()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
        self.env = {
            **inherited,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        command += [f"--port={free_port()}", f"--dashboard-port={self.dashboard}"]
        command += ["--include-dashboard=true", f"--temp-dir={folder}"]
        # Its usual port may be another Ray's, which has just ended, for some seconds more.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--object-store-memory=200000000", "--disable-usage-stats"]
        self.log = open(folder / "head.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=self.env, stdout=self.log, stderr=self.log, start_new_session=True
        )
        wait_until(lambda: self.job("list").returncode == 0, 90, "the Ray head")

    def job(self, *arguments: str) -> subprocess.CompletedProcess:
        address = f"http://127.0.0.1:{self.dashboard}"
        return subprocess.run(
            [RAY, "job", arguments[0], "--address", address, *arguments[1:]],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def submit(self, *arguments: str, name: str, wait: bool = True) -> subprocess.CompletedProcess:
        options = ["--working-dir", ".", "--submission-id", name]
        options += [] if wait else ["--no-wait"]
        return self.job("submit", *options, "--", "python", "-m", "cluster", "train", *arguments)

    def status(self, name: str) -> str:
        return self.job("status", name).stdout

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
        self.log.close()


@pytest.fixture(scope="module")
def head():
    import tempfile

    # Ray's sockets live below this folder, and a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        started = Head(Path(folder))
        yield started
        started.close()


def test_a_job_runs_to_its_end(head: Head, tiny: Path, tmp_path: Path):
    done = head.submit(*small_recipe(tmp_path, tiny, name="job", steps="2"), name="good")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in head.status("good").lower()
    assert len(metrics(tmp_path / "outputs" / "job")) == 2
    assert processes_of(tmp_path / "outputs" / "job") == []


def test_a_job_that_fails_says_so(head: Head, tiny: Path, tmp_path: Path):
    arguments = small_recipe(tmp_path, tiny, name="bad", **{"prompts.question": "query"})
    done = head.submit(*arguments, name="bad")
    assert done.returncode != 0
    assert "column 'query' does not exist" in done.stdout
    assert "failed" in head.status("bad").lower()


def test_a_recipe_that_asks_for_more_than_the_cluster_has(head: Head, tiny: Path, tmp_path: Path):
    arguments = small_recipe(tmp_path, tiny, name="big", **{"learner.ranks": "4"})
    done = head.submit(*arguments, name="big")
    assert "the Ray cluster has 2" in done.stdout
    assert "failed" in head.status("big").lower()


def test_stopping_a_job_leaves_nothing_behind(head: Head, tiny: Path, tmp_path: Path):
    folder = tmp_path / "outputs" / "stopped"
    arguments = small_recipe(tmp_path, tiny, name="stopped", steps="10000")
    head.submit(*arguments, name="stopped", wait=False)
    wait_until(lambda: (folder / "rollouts" / "000001.arrow").exists(), 200, "step 1")
    assert processes_of(folder)
    head.job("stop", "stopped")
    wait_until(lambda: processes_of(folder) == [], 15, "no process left")
    started = time.monotonic()
    wait_until(lambda: "stopped" in head.status("stopped").lower(), 60, "the status")
    assert time.monotonic() - started < 60
