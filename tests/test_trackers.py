"""Whatever a tracker does, rows go to `metrics.jsonl` and nobody waits."""

import json
import threading
import time
from pathlib import Path

import pytest
from disks import fill_up, small_disk

from cluster.config import LoggingConfig
from cluster.metrics import METRICS, MetricsWriter, read_metrics
from cluster.trackers import MOST_WAITING, Aside, gauge_of, identity


class Kept:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.closed = False

    def write(self, step: int, metrics: dict) -> None:
        self.rows.append((step, metrics))

    def close(self) -> None:
        self.closed = True


class Raises(Kept):
    def write(self, step: int, metrics: dict) -> None:
        if step % 2:
            raise ValueError(f"no step {step}")
        super().write(step, metrics)

    def close(self) -> None:
        raise OSError("cannot close")


class Blocks(Kept):
    """For a minute, as far as anybody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, step: int, metrics: dict) -> None:
        self.free.wait(60)


def test_rows_come_in_order_and_the_tracker_is_closed():
    kept = Kept()
    aside = Aside("kept", lambda: kept)
    for step in range(100):
        aside.write(step, {"a": step})
    aside.close()
    assert kept.rows == [(step, {"a": step}) for step in range(100)]
    assert kept.closed and aside.lost == 0 and not aside.why


def test_a_tracker_that_raises_loses_those_rows_and_no_other():
    raises = Raises()
    aside = Aside("bad", lambda: raises)
    for step in range(10):
        aside.write(step, {})
    aside.close()
    assert [step for step, _ in raises.rows] == [0, 2, 4, 6, 8]
    assert aside.lost == 6 and aside.why == "ValueError: no step 1"


def test_a_tracker_that_cannot_be_made_is_tried_again_with_each_row():
    tries, kept = [], Kept()

    def make() -> Kept:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("no server")
        return kept

    aside = Aside("late", make)
    for step in range(5):
        aside.write(step, {})
    aside.close()
    assert [step for step, _ in kept.rows] == [2, 3, 4] and aside.lost == 2
    assert aside.why == "ConnectionError: no server"


def test_nobody_waits_for_a_tracker_that_blocks():
    blocks = Blocks()
    aside = Aside("stuck", lambda: blocks)
    started = time.monotonic()
    for step in range(MOST_WAITING + 50):
        aside.write(step, {})
    aside.close()
    assert time.monotonic() - started < 5, "somebody waited"
    assert aside.lost >= 49 and f"{MOST_WAITING} rows behind" in aside.why
    blocks.free.set()


def test_a_tracker_that_hangs_at_the_end_is_left_there():
    blocks = Blocks()
    aside = Aside("stuck", lambda: blocks)
    aside.write(1, {})
    started = time.monotonic()
    aside.close(seconds=0.5)
    assert 0.4 < time.monotonic() - started < 5
    assert "hung when the run ended" in aside.why
    blocks.free.set()


def test_lost_rows_are_counted_in_the_metrics_and_named_at_the_end(tmp_path: Path):
    (tmp_path / "tensorboard").write_text("a file where TensorBoard wants a folder")
    writer = MetricsWriter(tmp_path, "run", LoggingConfig())
    writer.write(1, {"a": 1.0})
    deadline = time.monotonic() + 60  # its import takes a while
    while not writer.warning:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    writer.write(2, {"a": 2.0})
    writer.close()
    first, second = read_metrics(tmp_path)
    assert (first["a"], first["faults/rows_lost"]) == (1.0, 0.0)
    assert (second["a"], second["faults/rows_lost"]) == (2.0, 1.0)
    assert "tensorboard lost 2 rows of metrics: FileExistsError" in writer.warning


def test_rows_that_a_full_disk_refuses_are_written_when_there_is_room(tmp_path: Path):
    folder = tmp_path / "disk"
    with small_disk(folder, "64k"):
        writer = MetricsWriter(folder, "run", LoggingConfig(trackers=[]))
        writer.write(1, {"a": 1.0})
        filler = folder / "filler"
        fill_up(filler)
        for step in range(2, 102):
            writer.write(step, {"a": float(step)})
        assert "rows: no room on the disk" in writer.warning
        whole = (folder / METRICS).read_text().splitlines()
        assert all(json.loads(line) for line in whole) and len(whole) < 101
        filler.unlink()
        writer.write(102, {"a": 102.0})
        assert [row["step"] for row in read_metrics(folder)] == list(range(1, 103))
        assert not writer.warning
        writer.close()


@pytest.mark.parametrize(
    ("metric", "gauge", "labels"),
    [
        ("reward/mean", "cohort_reward_mean", {}),
        ("reward/number", "cohort_reward_part", {"verifier": "number"}),
        ("reward/number/seconds", "cohort_verifier_seconds", {"verifier": "number"}),
        (
            "reward/code/timeout",
            "cohort_verifier_outcome",
            {"verifier": "code", "outcome": "timeout"},
        ),
        ("reward/code/passed", "cohort_verifier_figure", {"verifier": "code", "figure": "passed"}),
        ("reward//a/b/my.py:fn", "cohort_reward_part", {"verifier": "/a/b/my.py:fn"}),
        ("reward//a/my.py:fn/seconds", "cohort_verifier_seconds", {"verifier": "/a/my.py:fn"}),
        ("time/update", "cohort_time", {"phase": "update"}),
        ("idle/sampler", "cohort_idle", {"role": "sampler"}),
        ("schedule/staleness/2", "cohort_schedule_staleness_share", {"versions": "2"}),
        ("schedule/staleness_max", "cohort_schedule_staleness_max", {}),
        ("eval/pass_at_4", "cohort_eval", {"figure": "pass_at_4"}),
    ],
)
def test_what_a_run_names_itself_is_a_label(metric: str, gauge: str, labels: dict):
    assert gauge_of(metric) == (gauge, labels)


def test_other_systems_names_stand_beside_ours(tmp_path: Path):
    row = {"reward/mean": 0.5, "reward/number": 0.25, "rollout/length": 7.0, "policy/entropy": 1.0}
    found = {}
    for system in ("trl", "verl"):
        (tmp_path / system).mkdir()
        writer = MetricsWriter(tmp_path / system, "run", LoggingConfig(aliases=system, trackers=[]))
        writer.write(1, row)
        writer.close()
        [found[system]] = read_metrics(tmp_path / system)
        assert row.items() <= found[system].items()
    trl, verl = found["trl"], found["verl"]
    assert (trl["reward"], trl["rewards/number/mean"], trl["completions/mean_length"]) == (
        0.5,
        0.25,
        7,
    )
    assert (verl["critic/rewards/mean"], verl["response_length/mean"]) == (0.5, 7)


def test_a_run_that_goes_on_is_the_same_run_to_a_tracker(tmp_path: Path):
    (tmp_path / "other").mkdir()
    assert identity(tmp_path) == identity(tmp_path) != identity(tmp_path / "other")
