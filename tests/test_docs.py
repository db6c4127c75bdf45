"""What the documents say to type, typed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, environment, metrics

from cluster.cli import COMMANDS
from cluster.config import options

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_are_there(page: Path):
    text = page.read_text()
    commands = set(re.findall(r"python -m cluster ([a-z]+)\b", text))
    assert commands <= set(COMMANDS), commands - set(COMMANDS)
    known = options()
    branches = "sampler|learner|schedule|checkpoint|logging|cluster|eval"
    set_to = re.findall(rf"`((?:{branches})\.[a-z_.]+[a-z])=[^`]*`", text)
    assert {name for name in set_to if name not in known} == set()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_a_task_of_ones_own_word_for_word(tmp_path: Path):
    page = (ROOT / "docs" / "your_task.md").read_text()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.S))
    folder = tmp_path / "clone"
    kept = shutil.ignore_patterns(".venv", ".git", "outputs", "tests", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=kept)
    (folder / "my_task.py").write_text(blocks["python"])
    (folder / "my_task.yaml").write_text(blocks["yaml"])
    assert len(blocks["python"].strip().splitlines()) <= 20
    *lines, view = blocks["sh"].strip().splitlines()
    for line in lines:
        command = line.replace("python", sys.executable, 1)
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
    assert view == "python -m cluster view outputs"  # tests/test_web.py has it
    rewards = [row["reward/mean"] for row in metrics(folder / "outputs" / "sevens")]
    assert rewards[0] < 0.1 and rewards[-1] > 0.7, rewards[::5]
    assert "sevens" in (folder / "outputs" / "sevens" / "report.html").read_text()
