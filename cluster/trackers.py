"""Where metrics are shown besides `metrics.jsonl`. Nothing that a tracker does reaches the run.

Each lives in a thread of its own behind a queue. Rows that it refuses, or that find the queue full
because it blocks, are counted, and nobody waits for it.
"""

import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cluster.files import replace_text
from rewards.score import FAULTS

MOST_WAITING = 1000
"""Rows; a tracker that is this far behind loses the next ones."""
LAST_SECONDS = 10.0
"""For what is in the queue when the run ends."""


class Tracker(Protocol):
    def write(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases. WANDB_PROJECT, WANDB_MODE and the like are its own; a run that goes on is
    the same run there."""

    def __init__(self, folder: Path, run: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        project = os.environ.get("WANDB_PROJECT", "cohort")
        settings = {"project": project, "name": run, "id": identity(folder), "resume": "allow"}
        self._run: Any = wandb.init(dir=str(folder), **settings)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are its own; without the first, `mlflow.db` of
    the run folder."""

    def __init__(self, folder: Path, run: str) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client: Any = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        )
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cohort")
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        mark = {"cohort.run": identity(folder)}
        known = self._client.search_runs([place], f"tags.`cohort.run` = '{mark['cohort.run']}'")
        made = known[0] if known else self._client.create_run(place, run_name=run, tags=mark)
        self._id = made.info.run_id

    def write(self, step: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """TRACKIO_DIR and TRACKIO_SPACE_ID are its own."""

    def __init__(self, folder: Path, run: str) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run: Any = trackio.init(project="cohort", name=run, resume="allow")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


IDENTITY = threading.Lock()


def identity(folder: Path) -> str:
    """Of a run folder: the same when the run goes on, another when it was begun anew."""
    path = folder / "identity"
    with IDENTITY:
        if not path.exists():
            replace_text(path, uuid.uuid4().hex[:16])
        return path.read_text()


class Prometheus:
    """Gauges of Ray's, which each node offers to Prometheus on its metrics port: `ray_cohort_...`
    with the run as a label; docs/operations.md has the names."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}
        self._passing: dict[str, set[tuple[tuple[str, str], ...]]] = {}
        """Labels of gauges that hold for one row only, as they were set last."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        from ray.util.metrics import Gauge

        said: dict[str, set[tuple[tuple[str, str], ...]]] = {}
        for name, value in {**metrics, "step": float(step)}.items():
            name, labels = gauge_of(name)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, tag_keys=("run", *labels))
            self._gauges[name].set(value, {"run": self._run, **labels})
            if name in PASSING:
                said.setdefault(name, set()).add(tuple(labels.items()))
        for name, now in said.items():
            for labels in self._passing.get(name, set()) - now:
                self._gauges[name].set(0.0, {"run": self._run, **dict(labels)})
            self._passing[name] = now

    def close(self) -> None:
        """Ray sends what it has when the driver ends."""


PASSING = ("cohort_time", "cohort_schedule_staleness_share")
"""Gauges of which a row that lacks a label says 0."""
OF_REWARD = ("mean", "std", "greedy", "judged_steps", "verifier_errors", "timeouts", "tampered")


def gauge_of(name: str) -> tuple[str, dict[str, str]]:
    """The gauge that a metric is a value of, and that value's labels: what follows a run's own
    words, like the names of its verifiers, is a label, so that one dashboard fits all runs.

    >>> gauge_of("reward/number/seconds")
    ('cohort_verifier_seconds', {'verifier': 'number'})
    """
    group, _, rest = name.partition("/")
    if group == "reward" and rest not in OF_REWARD:
        verifier, _, figure = rest.rpartition("/")
        if not verifier or not figure.isidentifier():  # like path/to/file.py:function
            return "cohort_reward_part", {"verifier": rest}
        if figure == "seconds":
            return "cohort_verifier_seconds", {"verifier": verifier}
        if figure in FAULTS:
            return "cohort_verifier_outcome", {"verifier": verifier, "outcome": figure}
        return "cohort_verifier_figure", {"verifier": verifier, "figure": figure}
    if name.startswith("schedule/staleness/"):
        return "cohort_schedule_staleness_share", {"versions": name.rpartition("/")[2]}
    label = {"time": "phase", "idle": "role", "eval": "figure"}.get(group)
    if label:
        return f"cohort_{group}", {label: rest}
    return f"cohort_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}", {}


class Aside:
    """A tracker, kept from whoever writes to it. `make` is called in its thread, too: connecting
    may take as long as it likes."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.lost = 0
        """Rows that it did not take."""
        self.why = ""
        """The first failure"""
        self._make = make
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        try:
            self._rows.put_nowait((step, metrics))
        except queue.Full:
            self._miss(f"it is {MOST_WAITING} rows behind")

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """What waits is written if that takes no longer."""
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            seconds = 0.0
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.lost += self._rows.qsize()
            self._miss("it hung when the run ended")

    def _miss(self, why: str) -> None:
        self.lost += 1
        self.why = self.why or why

    def _work(self) -> None:
        tracker: Tracker | None = None
        while (row := self._rows.get()) is not None:
            try:
                tracker = tracker or self._make()
                tracker.write(*row)
            except Exception as error:  # whatever it is, the run has nothing to do with it
                self._miss(f"{type(error).__name__}: {error}")
        try:
            if tracker is not None:
                tracker.close()
        except Exception as error:
            self._miss(f"{type(error).__name__}: {error}")
