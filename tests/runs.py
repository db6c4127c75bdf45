"""Small real runs through the command line, as a user starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMALL = """
steps: 4
prompts: {max_tokens: 64}
sampler:
  group_size: 4
  max_running: 32
  sampling: {max_tokens: 12}
rewards:
  verifiers: {number: 1.0, think_number: 0.2}
schedule: {groups_per_step: 4}
learner:
  optim: {lr: 1.0e-3}
eval: {every: 2, prompts: 8}
checkpoint: {every: 2}
"""


def small_recipe(folder: Path, start: Path, **extra: str) -> list[str]:
    """Arguments of `train` for a run of seconds: real Ray, vLLM and DeepSpeed, a random model."""
    recipe = folder / "small.yaml"
    recipe.write_text(SMALL)
    settings = {
        "model.path": start / "model",
        "prompts.dataset": start / "train.jsonl",
        "eval.dataset": start / "heldout.jsonl",
        "output_dir": folder / "outputs",
        **extra,
    }
    return [str(recipe), *(f"{key}={value}" for key, value in settings.items())]


def environment(**extra: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_", "DS_"))}
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **extra}


def start(*arguments: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def cohort(*arguments: str, expect: int = 0, seconds: float = 300, **env: str) -> str:
    """Run a command to its end; its output. Fails unless the exit code is as expected."""
    process = start(*arguments, **env)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"no end within {seconds} s; the output so far:\n{output}") from None
    assert process.returncode == expect, f"exit code {process.returncode}:\n{output[-6000:]}"
    return output


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder: Path) -> list[dict]:
    """The training rows of a run's metrics."""
    return [row for row in jsonl(folder / "metrics.jsonl") if "learner/lr" in row]


def processes_of(folder: Path) -> list[str]:
    """Command lines of live processes that carry the mark of this run folder, the descendants of
    Ray's own processes included."""
    mark = f"COHORT_RUN={folder.resolve()}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z":
                    found.append((process / "cmdline").read_bytes().decode()[:80])
        except OSError:
            continue
    return found


def until_gone(folder: Path, seconds: float = 15) -> None:
    """No process of the run is left. Raises AssertionError with those that are."""
    deadline = time.monotonic() + seconds
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"after {seconds} s there still are {left}"
        time.sleep(0.1)


def wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)
