"""The line that says what is happening inside a step, and the table that ends a run."""

import io

import pytest

from cluster.progress import Progress, duration
from cluster.result import show


def test_the_line_of_each_phase():
    progress = Progress("line", io.StringIO())
    progress.phase = "starting 1 learner x 1 CPU"
    assert progress.render() == "starting 1 learner x 1 CPU"
    progress.begin(11, 150)
    progress.phase, progress.groups, progress.scored = "rollout", (40, 64), 38
    assert progress.render() == "step 12/150 · rollout 40/64 · scored 38"
    progress.phase, progress.update, progress.reward = "update", (2, 4), 0.612
    assert progress.render() == "step 12/150 · update 2/4 · reward 0.61"
    progress.phase = "publish"
    progress.end_step(12)
    assert progress.render().startswith("step 13/150 · publish · reward 0.61 · ETA ")


def test_a_live_line_is_redrawn_and_a_lasting_line_stays():
    stream = io.StringIO()
    progress = Progress("line", stream)
    progress.phase = "x" * 500
    progress._draw()
    progress.line("kept")
    drawn = stream.getvalue()
    assert drawn.endswith("\r\x1b[2Kkept\n")
    assert len(max(drawn.split("\r"), key=len)) < 400, "a live line must not wrap"


def test_plain_lines_come_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress("plain", stream)
    progress.begin(0, 1000)
    for step in range(1, 101):
        now[0] += 0.1
        progress.end_step(step)
        progress.step_line("loss 1")
    lines = stream.getvalue().splitlines()
    assert 8 <= len(lines) <= 11
    assert "\x1b" not in stream.getvalue()
    now[0] += 60
    progress.phase = "update"
    progress._draw()
    assert stream.getvalue().splitlines()[-1].startswith("step 101/1000"), "no sign of life"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_table_shows_shares_as_shares():
    result = {
        "held_out": {"step 0": {"number": 0.25, "reward": 1.2, "length": 26.94}},
        "seconds": {"total": 61.0},
        "run_folder": "outputs/x",
        "model": None,
    }
    text = show(result)
    assert "25.0%" in text and "1.200" in text and "26.9" in text
    assert "total 1 min 01 s" in text
