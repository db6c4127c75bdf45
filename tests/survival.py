"""A real run whose processes can be held, killed and frozen, and what its record has to say."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from runs import jsonl, metrics, small_recipe, start, until_gone, wait_until

from cluster.ledger import conserved, read_ledger, table_path
from rollout.schema import read_table

SPREAD = """
def verify(completion):
    return sum(map(ord, completion)) % 7 / 6
"""
"""A reward that hardly ever is the same for two completions: every step moves the weights."""

OPTIONS = {
    "steps": "8",
    "eval.dataset": "",
    "sampler.replicas": "2",
    "learner.ranks": "2",
    "cluster.heartbeat_timeout": "15",
    "checkpoint.every": "2",
}


class Live:
    """A run under way, whose processes can be held at named points, and killed."""

    under_way: ClassVar[list["Live"]] = []

    def __init__(
        self, folder: Path, tiny: Path, name: str, *, begin: Callable = start, **options: str
    ) -> None:
        """`options` are the recipe's; those in capitals go into the environment."""
        folder.mkdir(exist_ok=True)
        self._begin = begin
        self._env = {key: options.pop(key) for key in list(options) if key.isupper()}
        verifier = folder / "spread.py"
        verifier.write_text(SPREAD)
        rewards = f'{{"{verifier}:verify": 1.0}}'
        settings = {"name": name, "rewards.verifiers": rewards, **OPTIONS, **options}
        self.arguments = small_recipe(folder, tiny, **settings)
        self.folder = folder / "outputs" / name
        self.faults = folder / f"{name}.faults"
        self.faults.mkdir(exist_ok=True)
        self.output = ""
        # Ray's sockets allow paths of 107 characters only, so not below pytest's folder.
        self.temporary = Path(tempfile.mkdtemp(prefix="co"))
        self.again()

    def again(self) -> None:
        """The same command."""
        self.temporary.mkdir(exist_ok=True)
        env = {**self._env, "TMPDIR": str(self.temporary), "COHORT_FAULTS": str(self.faults)}
        self.process = self._begin("train", *self.arguments, **env)
        # Read as it comes: a full pipe would hold up the driver.
        self._reader = threading.Thread(target=self._read, args=[self.process], daemon=True)
        self._reader.start()
        self.under_way.append(self)

    def _read(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output += line

    def until(self, condition, what: str, seconds: float = 240) -> None:
        def met() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"{what}: the run ended before:\n{self.end(expect=None)}")
            return condition()

        wait_until(met, seconds, what)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.steps_done >= step, f"step {step}")

    @property
    def steps_done(self) -> int:
        return len(read_ledger(self.folder)[0])

    def pid(self, who: str) -> int:
        """Of whoever is `sampler-1` now."""
        stacks = sorted((self.folder / "stacks").glob(f"{who}.*"), key=lambda p: p.stat().st_mtime)
        return int(stacks[-1].suffixes[0][1:])

    def hold(self, point: str) -> None:
        """Whoever comes there stops."""
        (self.faults / f"{point}.hold").touch()

    def held(self, point: str) -> set[int]:
        return {int(p.suffix[1:]) for p in self.faults.glob(f"{point}.[0-9]*")}

    def until_held(self, point: str, pid: int) -> None:
        self.until(lambda: pid in self.held(point), f"{pid} at {point}")

    def let_go(self, point: str) -> None:
        (self.faults / f"{point}.hold").unlink()

    def losses(self) -> list[dict]:
        path = self.folder / "faults.jsonl"
        return jsonl(path) if path.exists() else []

    def until_replaced(self, count: int) -> None:
        self.until(lambda: len(self.losses()) >= count, f"{count} losses made good")

    def end(self, *, expect: int | None = 0, seconds: float = 300) -> str:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"no end within {seconds} s:\n{self.output[-6000:]}") from None
        self._reader.join(10)  # a process that outlives the driver may have its end of the pipe
        assert expect is None or self.process.returncode == expect, self.output[-6000:]
        if expect is not None:
            wait_until(lambda: not self.leftovers(), 15, f"nothing left: {self.leftovers()}")
            shutil.rmtree(self.temporary)
        return self.output

    @classmethod
    def end_all(cls) -> None:
        """Of a test that failed."""
        for run in cls.under_way:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        cls.under_way.clear()

    def leftovers(self) -> list[str]:
        """What the run has in temporary places: all but Ray's folder of sessions, which is empty,
        and its link to the last of them."""
        found = {path.name for path in self.temporary.glob("*")} - {"ray"}
        found |= {path.name for path in self.temporary.glob("ray/*")} - {"session_latest"}
        return sorted(found)


def check_equal(ours: Path, undisturbed: Path) -> None:
    assert trained(ours) == trained(undisturbed), "other completions were trained"
    assert digest_of(ours) == digest_of(undisturbed), "the weights are not those of a calm run"


def digest_of(folder: Path) -> str:
    return json.loads((folder / "result.json").read_text())["weights_digest"]


def trained(folder: Path) -> list[list[tuple]]:
    """Of each step, what the learner learned from."""
    columns = ["group_id", "sample_id", "prompt_id", "completion_ids", "policy_versions", "reward"]
    steps = len(read_ledger(folder)[0])
    tables = [read_table(table_path(folder / "rollouts", n)) for n in range(1, steps + 1)]
    return [
        [tuple(map(str, row.values())) for row in t.select(columns).to_pylist()] for t in tables
    ]


def check_record(folder: Path, steps: int, bound: int = 0) -> None:
    """The invariants that hold whatever was done to the run."""
    commits, wrong = read_ledger(folder)
    assert not wrong and [c.step for c in commits] == list(range(1, steps + 1))
    tickets = [ticket for commit in commits for ticket in commit.tickets]
    assert len(tickets) == len(set(tickets)), "a group was trained twice"
    count = 0
    for commit in commits:
        count += len(commit.tickets)
        assert conserved(count, commit.window), f"a prompt was lost by step {commit.step}"
        table = read_table(table_path(folder / "rollouts", commit.step))
        assert sorted(set(table["group_id"].to_pylist())) == sorted(commit.tickets)
        for versions in table["policy_versions"].to_pylist():
            assert commit.step - 1 - bound <= min(versions) <= max(versions) < commit.step
    assert {row["step"] for row in metrics(folder)} >= set(range(1, steps + 1))
    until_gone(folder)
