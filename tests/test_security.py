"""Secrets stay where they are, and nobody without the token talks to a Ray that we started."""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import ROOT, environment, small_recipe, start, wait_until
from web import Service

pytestmark = pytest.mark.ray

WRONG = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}
CANARY = "canary-5f1d2c9e"
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "JUDGE_KEY")

SESSION = """
import sys, tempfile
from cluster.config import RunConfig
from cluster.progress import Progress
from cluster.session import ray_session
import ray

with ray_session(RunConfig(output_dir=tempfile.mkdtemp()), Progress("plain")):
    print("ADDRESS", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""

CLIENT = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("CPUS", ray.cluster_resources()["CPU"])
"""


def client(address: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address],
        env=environment(RAY_gcs_rpc_server_connect_timeout_s="5", **env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_a_ray_that_we_start_refuses_those_without_its_token(tmp_path: Path):
    home = {"HOME": str(tmp_path)}  # no token there yet
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=ROOT,
        env=environment(**home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("ADDRESS"))
        strangers = ({"RAY_AUTH_MODE": "disabled"}, WRONG)
        with ThreadPoolExecutor() as threads:  # those who are refused take their time
            with_it, *without = threads.map(
                lambda given: client(address, **home, **given),
                ({"RAY_AUTH_MODE": "token"}, *strangers),
            )
        assert "CPUS" in with_it, with_it[-2000:]
        for stranger, said in zip(strangers, without, strict=True):
            assert "CPUS" not in said, f"{stranger} came in"
            assert "uthentication" in said, said[-2000:]
    finally:
        process.communicate("")
    [token] = tmp_path.rglob("auth_token")
    assert token.stat().st_mode & 0o077 == 0, "others may read the token"


def holders(folder: Path) -> list[str]:
    """Files below a folder that hold the canary."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes():
            found.append(str(path))
    return found


def command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return lines


@pytest.mark.vllm
@pytest.mark.deepspeed
def test_secrets_of_the_environment_are_in_no_file_log_or_command_line(tiny: Path, tmp_path: Path):
    service = Service()
    service.respond = lambda body: {"scores": [0.5] * len(body["completions"])}
    remote = {"use": "http", "url": service.url, "api_key_env": "JUDGE_KEY"}
    rewards = json.dumps({"remote": remote, "number": 1.0})
    arguments = small_recipe(tmp_path, tiny, **{"rewards.verifiers": rewards, "steps": "2"})
    # Ray's sockets allow paths of 107 characters only, so not below pytest's folder.
    with tempfile.TemporaryDirectory(prefix="ray-") as sessions:
        secrets = dict.fromkeys(SECRETS, CANARY)
        process = start("train", *arguments, RAY_TMPDIR=sessions, **secrets)
        wait_until(lambda: service.asked or process.poll() is not None, 120, "the service's call")
        assert not [line for line in command_lines() if CANARY.encode() in line]
        rows = tmp_path / "outputs" / "run" / "metrics.jsonl"
        wait_until(
            lambda: process.poll() is not None or '"step": 2' in rows.read_text(), 120, "step 2"
        )
        assert list(Path(sessions).rglob("*.log")), "Ray's logs are elsewhere"
        assert holders(Path(sessions)) == [], "in Ray's logs"
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-4000:]
        assert CANARY not in output
    assert holders(tmp_path) == [], "in the run folder"
    sent = [value for asked in service.headers for value in asked.values()]
    assert any(CANARY in value for value in sent), "the key never reached the service"


def test_nothing_turns_on_what_runs_code_of_others():
    """vLLM's pickles on the wire, and code that comes with a model."""
    words = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "trust_remote_code=True", "allow_pickle=True")
    for package in ("rewards", "rollout", "learner", "cluster", "recipes", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert not [word for word in words if word in text], path
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in os.environ
