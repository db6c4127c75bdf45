"""Checkpoints: whole or not there, at whatever moment their writer dies."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import checkpoint
from cluster.ledger import Ledger, conserved, read_ledger, table_path
from cluster.tools import audit
from cluster.window import WindowState

ROOT = Path(__file__).resolve().parent.parent

WRITER = """
import sys
from pathlib import Path
from cluster import checkpoint
from cluster.window import WindowState

root, step = Path(sys.argv[1]), int(sys.argv[2])
print("begun", flush=True)
while True:
    folder = checkpoint.temporary(root, step)
    for name in ("learner/0.pt", "learner/1.pt", "model/weights.safetensors", "learner.json"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(step.to_bytes(8, "little") * 40_000)
    checkpoint.commit(folder, step=step, window=WindowState((step,), step + 1), state={"n": step})
    checkpoint.prune(root, keep=2, keep_every=0, scores={})
    step += 1
"""


def write(root: Path, step: int, size: int = 1000) -> Path:
    folder = checkpoint.temporary(root, step)
    (folder / "learner").mkdir()
    for name in ("learner/0.pt", "learner.json"):
        (folder / name).write_bytes(bytes([step]) * size)
    window = WindowState((step, step + 1), step + 2, discarded=3, dropped=1)
    return checkpoint.commit(folder, step=step, window=window, state={"weights": "x"}).folder


def test_a_writer_killed_at_fifty_moments_always_leaves_a_whole_one(tmp_path: Path):
    rng, newest, torn = random.Random(5), 0, 0
    for _ in range(50):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(newest + 1)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.0, 0.05) + (0.1 if not newest else 0))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        torn += any(tmp_path.glob("tmp-*"))
        found, passed = checkpoint.newest(tmp_path)
        assert found is not None and passed == [], passed
        assert found.step >= newest, "the newest one went back"
        newest = found.step
        for path in found.folder.rglob("*"):
            if path.is_file() and path.name != checkpoint.MANIFEST:
                assert path.read_bytes() == newest.to_bytes(8, "little") * 40_000, "a mix"
        assert found.window == WindowState((newest,), newest + 1) and found.state == {"n": newest}
    assert torn > 10 and newest > 10, "it was hardly ever killed in the middle"


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(harm: str, tmp_path: Path):
    names = ["learner/0.pt", "learner.json", checkpoint.MANIFEST]
    for number, name in enumerate(names):
        root = tmp_path / str(number)
        write(root, 1)
        path = write(root, 2) / name
        content = bytearray(path.read_bytes())
        if harm == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "flipped":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        else:
            path.unlink()
        found, passed = checkpoint.newest(root)
        assert found is not None and found.step == 1, (name, passed)
        assert len(passed) == 1 and "000002" in passed[0]


def test_what_is_kept(tmp_path: Path):
    for step in range(1, 11):
        write(tmp_path, step)
        scores = {3: 0.9, 7: 0.5}
        checkpoint.prune(tmp_path, keep=2, keep_every=4, scores=scores)
    kept = [int(folder.name) for folder in sorted(tmp_path.iterdir())]
    assert kept == [3, 4, 8, 9, 10]


def test_the_window_of_a_checkpoint_comes_back_as_it_was(tmp_path: Path):
    write(tmp_path, 4)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.window == WindowState((4, 5), 6, discarded=3, dropped=1)


# -- the ledger -----------------------------------------------------------------------------------


def trained(folder: Path, steps: int, start: int = 0) -> Ledger:
    """A run of so many steps of two groups."""
    from builders import group

    from rollout.schema import to_table

    ledger = Ledger(folder)
    ledger.rewind(start, WindowState((), 2 * start))
    for step in range(start + 1, start + steps + 1):
        groups = [group(2 * step - 2, version=step - 1), group(2 * step - 1, version=step - 1)]
        ledger.record(step, to_table(groups, step=step, run="r", temperature=1.0))
        ledger.commit(step, groups, WindowState((), 2 * step))
    return ledger


def test_a_lost_prompt_stops_the_run_at_the_next_commit(tmp_path: Path):
    from builders import group

    ledger = trained(tmp_path, 1)
    groups = [group(2, version=1), group(3, version=1)]
    with pytest.raises(RuntimeError, match="step 2: of 5 prompts drawn, 4 were trained"):
        ledger.commit(2, groups, WindowState((), 5))
    assert conserved(4, WindowState((5,), 8, discarded=1, dropped=2))
    assert not conserved(4, WindowState((5,), 8, discarded=1, dropped=1))


def test_commits_behind_a_checkpoint_are_replayed_up_to_the_first_that_is_damaged(tmp_path: Path):
    trained(tmp_path, 6)
    assert [c.step for c in Ledger(tmp_path).replayable(2)] == [3, 4, 5, 6]
    path = table_path(tmp_path / "rollouts", 5)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ledger = Ledger(tmp_path)
    assert [c.step for c in ledger.replayable(2)] == [3, 4], "a flipped bit was trained"
    assert ledger.rewind(4, WindowState((), 8)) == 2
    assert [c.step for c in read_ledger(tmp_path)[0]] == [1, 2, 3, 4]
    assert len(list((tmp_path / "rollouts").glob("*.superseded*"))) == 2
    assert (tmp_path / "ledger.jsonl.1").exists()
    trained(tmp_path, 2, start=4)  # conservation holds behind the seam
    assert [c.step for c in Ledger(tmp_path).replayable(0)] == [1, 2, 3, 4, 5, 6]


def test_a_line_that_is_lost_in_the_middle_raises_no_alarm_behind_a_later_checkpoint(
    tmp_path: Path,
):
    trained(tmp_path, 6)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\xff" + lines[2][1:], *lines[3:]]))
    ledger = Ledger(tmp_path)
    assert ledger.rewind(6, WindowState((), 12)) == 0
    assert [c.step for c in read_ledger(tmp_path)[0]] == [1, 2, 4, 5, 6], "whole lines were lost"
    trained(tmp_path, 1, start=6)


@pytest.mark.parametrize("harm", ["flipped", "torn"])
def test_a_damaged_line_is_told_from_a_whole_one(harm: str, tmp_path: Path):
    trained(tmp_path, 4)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if harm == "flipped":
        lines[2] = lines[2].replace('"tickets": [4, 5]', '"tickets": [4, 6]')
    else:
        lines[3] = lines[3][:40]
    path.write_text("".join(lines))
    commits, wrong = read_ledger(tmp_path)
    if harm == "flipped":
        assert len(commits) == 3 and "line 3: the line does not match its checksum" in wrong
    assert [c.step for c in Ledger(tmp_path).replayable(0)] == [1, 2, 3][: 2 + (harm == "torn")]


def test_tables_that_a_checkpoint_holds_can_be_forgotten(tmp_path: Path):
    ledger = trained(tmp_path, 4)
    ledger.forget(2)
    assert {p.stem for p in (tmp_path / "rollouts").iterdir()} == {"000003", "000004"}
    assert [c.step for c in ledger.replayable(2)] == [3, 4] and ledger.replayable(0) == []


# -- `python -m cluster ledger` -------------------------------------------------------------------


def recorded(folder: Path, steps: int = 4) -> Path:
    from cluster.config import RunConfig
    from cluster.files import write_json

    trained(folder, steps)
    write_json(folder / "config.json", {"config": RunConfig().model_dump(mode="json")})
    return folder


def verdict(folder: Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code = audit.verify(folder)
    return code, capsys.readouterr().out


def test_a_sound_record_is_found_sound(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert verdict(recorded(tmp_path), capsys) == (
        0,
        "4 steps, 8 groups trained, 4 tables, 0 faults\n",
    )
    audit.show(tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_what_is_wrong_with_a_record_is_found(tmp_path: Path, capsys: pytest.CaptureFixture):
    folders = {n: recorded(tmp_path / n) for n in ("bit", "gone", "line", "cut", "twice", "ahead")}
    path = table_path(folders["bit"] / "rollouts", 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    table_path(folders["gone"] / "rollouts", 3).unlink()
    for name in ("line", "cut", "twice"):
        path = folders[name] / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        if name == "line":
            lines[1] = lines[1].replace("step", "stop", 1)
        elif name == "cut":
            del lines[1:]
        else:
            lines.append(lines[0])
        path.write_text("".join(lines))
    write(folders["ahead"] / "checkpoints", 7)
    said = {
        "bit": "is not what was trained",
        "gone": "000003.arrow is missing",
        "line": "line 2: the line does not match its checksum",
        "cut": "000003.arrow is of a step that the ledger does not have",
        "twice": "trained more than once: tickets [0, 1]",
        "ahead": "000007 is of a step that the ledger does not have",
    }
    for name, words in said.items():
        code, text = verdict(folders[name], capsys)
        assert code == 1 and words in text, (name, text)


def test_two_records_are_compared_to_the_step_where_they_part(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    from builders import group

    from rollout.schema import to_table

    one, other = recorded(tmp_path / "one"), recorded(tmp_path / "other")
    assert audit.diff(one, other) == 0
    groups = [group(4, version=1), group(5, version=2)]
    table = to_table(groups, step=3, run="r", temperature=1.0)
    from rollout.schema import write_table

    write_table(table, table_path(other / "rollouts", 3))
    assert audit.diff(one, other) == 1
    assert "step 3: the same prompts, but policy_versions differ" in capsys.readouterr().out
    table_path(other / "rollouts", 3).unlink()
    assert audit.diff(one, other) == 1
    assert "of 1 steps only the prompts were compared" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not a run folder"):
        audit.show(tmp_path)
