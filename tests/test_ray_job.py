"""`ray job submit` against a running head: same run, truthful status, nothing left by a stop."""

import contextlib
import json
import os
import runpy
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from ranks import free_port
from runs import ROOT, metrics, processes_of, small_recipe, until_gone, wait_until

from cluster.tools.submit import submit

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

RAY = str(Path(sys.executable).with_name("ray"))


class Head:
    """A Ray head on loopback with a token of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dashboard, self.port = free_port(), free_port()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
        self.env = {
            **inherited,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        command += [f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
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

    def cohort(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        """A command of ours, as somebody types it who has this cluster's address and token."""
        address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}"}
        return subprocess.run(
            [sys.executable, "-m", "cluster", *arguments],
            cwd=ROOT,
            env={**self.env, **address, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )

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


def test_a_job_that_submit_sends_runs_to_its_end(head: Head, tiny: Path):
    recipe = ROOT / "submitted.yaml"  # what goes to the cluster is below this folder
    try:
        [path, *overrides] = small_recipe(tiny, tiny, name="good", steps="2")
        recipe.write_text(Path(path).read_text())
        done = head.cohort("submit", recipe.name, *overrides)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        [line] = [line for line in done.stdout.splitlines() if line.startswith("ray job submit")]
        assert f"--address http://127.0.0.1:{head.dashboard} --working-dir ." in line
        assert f"-- python -m cluster train {recipe.name}" in line
        identity = shlex.split(line)[shlex.split(line).index("--submission-id") + 1]
        assert "go to the cluster" in done.stdout and "succeeded" in head.status(identity).lower()
        assert len(metrics(tiny / "outputs" / "good")) == 2
        assert processes_of(tiny / "outputs" / "good") == []
        wrong = head.cohort("submit", recipe.name, *overrides, "learner.rank=2")
        assert wrong.returncode == 2 and "learner.rank" in wrong.stderr
        other = head.cohort("submit", recipe.name, *overrides, RAY_AUTH_TOKEN="f" * 32)
        assert other.returncode == 2 and "wants a token, and has another" in other.stderr
        nobody = head.cohort("submit", recipe.name, "--address", "http://127.0.0.1:9", *overrides)
        assert nobody.returncode == 1 and "no Ray dashboard at" in nobody.stderr
    finally:
        recipe.unlink()


@pytest.mark.slow  # half a minute
def test_the_doctor_looks_at_every_node_of_a_cluster(head: Head, tiny: Path, tmp_path: Path):
    [recipe, *overrides] = small_recipe(tmp_path, tiny, name="well")
    cluster = {"RAY_ADDRESS": f"127.0.0.1:{head.port}"}
    done = head.cohort("doctor", recipe, *overrides, **cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("node ", "a sum over 1 nodes takes", "reference answers, scored", "GiB memory"):
        assert said in done.stdout, f"{said!r} is not in\n{done.stdout}"
    assert "1 x " in done.stdout and "for the learner" in done.stdout
    gone = head.cohort("doctor", RAY_ADDRESS="127.0.0.1:9")
    assert gone.returncode == 1 and "WRONG: nobody answers at 127.0.0.1:9" in gone.stdout
    open_to_all = head.cohort("doctor", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="", **cluster)
    assert "RAY_AUTH_MODE is not token" in open_to_all.stdout
    assert open_to_all.returncode == 1, "a cluster with a token let somebody in without one"


def test_what_is_too_large_or_elsewhere_is_not_sent(tmp_path: Path, tiny: Path):
    [path, *overrides] = small_recipe(tmp_path, tiny, name="large")
    (tmp_path / "weights.bin").write_bytes(b"")
    os.truncate(tmp_path / "weights.bin", 200 << 20)
    with pytest.raises(ValueError, match=r"the largest are weights.bin \(200 MiB\)"):
        submit([path], overrides, folder=tmp_path)
    (tmp_path / ".rayignore").write_text("*.bin\n")
    with pytest.raises(RuntimeError, match="no Ray dashboard"):
        submit([path], overrides, folder=tmp_path, address="http://127.0.0.1:9")
    (tmp_path / "below").mkdir()
    with pytest.raises(ValueError, match="which is what goes to the cluster"):
        submit([path], overrides, folder=tmp_path / "below")


def test_the_dashboards_file_is_what_its_program_writes():
    written = json.loads((ROOT / "docker" / "grafana" / "cohort.json").read_text())
    assert written == runpy.run_path(str(ROOT / "docker" / "dashboard.py"))["dashboard"]()


@pytest.fixture
def prometheus(head: Head, tmp_path: Path):
    """A real one, which scrapes the head's nodes; the address of its API."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    config = yaml.safe_load((ROOT / "docker" / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    del job["static_configs"]
    found = head.folder / "prom_metrics_service_discovery.json"
    job["file_sd_configs"] = [{"files": [str(found)]}]
    config["global"]["scrape_interval"] = "1s"
    file, port = tmp_path / "prometheus.yaml", free_port()
    file.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    server = subprocess.Popen(command)
    yield f"http://127.0.0.1:{port}/api/v1/query"
    server.terminate()
    server.wait(20)


@pytest.mark.slow
def test_every_panel_of_the_dashboard_has_data_of_a_run(
    head: Head, prometheus: str, tiny: Path, tmp_path: Path
):
    arguments = small_recipe(tmp_path, tiny, name="seen", steps="10000")
    head.submit(*arguments, name="seen", wait=False)
    board = json.loads((ROOT / "docker" / "grafana" / "cohort.json").read_text())
    queries = {
        target["expr"].replace("$run", "seen"): panel["title"]
        for panel in board["panels"]
        for target in panel.get("targets", [])
    }
    assert len(queries) > 25

    def empty() -> list[str]:
        return [query for query in queries if not asked(prometheus, query)]

    try:
        wait_until(lambda: not empty(), 120, f"data in every panel; last without: {empty()}")
        [step] = asked(prometheus, 'ray_cohort_step{run="seen"}')
        assert float(step["value"][1]) >= 1
        actors = subprocess.run(
            [RAY, "list", "actors", "--format=json", "--filter=state=ALIVE", "--detail"],
            env={**head.env, "RAY_ADDRESS": f"http://127.0.0.1:{head.dashboard}"},
            capture_output=True,
            text=True,
        )
        listed = {each["name"]: each["repr_name"] for each in json.loads(actors.stdout)}
        for name in ("seen/sampler/0", "seen/learner/0", "seen/scorer/0"):
            assert listed[name].startswith(name), listed
    finally:
        stop(head, "seen", tmp_path / "outputs" / "seen")


@pytest.mark.slow
def test_stopping_a_job_leaves_nothing_behind(head: Head, tiny: Path, tmp_path: Path):
    head.submit(
        *small_recipe(tmp_path, tiny, name="stopped", steps="10000"), name="stopped", wait=False
    )
    folder = tmp_path / "outputs" / "stopped"
    wait_until(lambda: (folder / "rollouts" / "000001.arrow").exists(), 200, "step 1")
    stop(head, "stopped", folder)


def stop(head: Head, name: str, folder: Path) -> None:
    """A job under way; nothing of it is left."""
    assert processes_of(folder)
    head.job("stop", name)
    until_gone(folder)
    wait_until(lambda: "stopped" in head.status(name).lower(), 60, "the status")


def asked(prometheus: str, query: str) -> list[dict]:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(prometheus, params={"query": query}).json()["data"]["result"]
    return []
