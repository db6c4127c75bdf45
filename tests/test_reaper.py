"""Who carries the mark of a run whose driver is gone does not live on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runs import until_gone, wait_until

from cluster import reaper

SLEEPS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
DRIVER = """
import os, sys
from pathlib import Path
from cluster import reaper
reaper.start(Path(sys.argv[1]))
print(reaper.identity(), flush=True)
os.read(0, 1)
"""


def marked(folder: Path, driver: str) -> subprocess.Popen:
    marks = reaper.marks_of(folder, driver)
    return subprocess.Popen([sys.executable, "-c", SLEEPS], env={**os.environ, **marks})


def test_a_killed_drivers_processes_go_and_those_of_its_successor_stay(tmp_path: Path):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(reaper.__file__).parent.parent,
    )
    assert driver.stdout is not None
    name = driver.stdout.readline().decode().strip()
    deaf, frozen = marked(tmp_path, name), marked(tmp_path, name)
    others, successor = marked(tmp_path / "other", name), marked(tmp_path, "1-1")
    os.kill(frozen.pid, signal.SIGSTOP)
    driver.kill()
    try:
        for process in (deaf, frozen):
            assert process.wait(reaper.GRACE_SECONDS + 20) == -signal.SIGKILL
        assert successor.poll() is None and others.poll() is None
    finally:
        for process in (driver, successor, others):
            process.kill()
            process.communicate()


def test_stopping_it_waits_until_nothing_is_left(tmp_path: Path):
    watching, process = reaper.start(tmp_path), marked(tmp_path, reaper.identity())
    wait_until(lambda: reaper.processes_of(tmp_path) == [process.pid], 5, "the process")
    began = time.monotonic()
    reaper.stop(watching)
    assert time.monotonic() - began > reaper.GRACE_SECONDS
    assert watching.returncode == 0 and process.wait(1) == -signal.SIGKILL
    until_gone(tmp_path)
    again = reaper.start(tmp_path)
    began = time.monotonic()
    reaper.stop(again)
    assert time.monotonic() - began < reaper.GRACE_SECONDS, "nobody was left to wait for"


def test_an_agent_that_wrote_over_its_environment_is_known_by_what_it_has_open(tmp_path: Path):
    """Ray's agents do, with their titles: the run's marks go with it."""
    logs = tmp_path / "session_2026-12-01_01-03-13_088000_4711" / "logs"
    logs.mkdir(parents=True)
    with open(logs / "agent.log", "w") as log:
        agent = subprocess.Popen(
            ["bash", "-c", "exec -a ray::DashboardAgent sleep 60"], stdout=log, env={}
        )
    try:
        deadline = time.monotonic() + 10
        while not reaper.processes_of(tmp_path, "4711-9") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert reaper.processes_of(tmp_path, "4711-9") == [agent.pid]
        assert reaper.processes_of(tmp_path, "711-9") == [], "another driver's"
        assert reaper.processes_of(tmp_path) == []
    finally:
        agent.kill()
        agent.wait()
