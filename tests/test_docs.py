"""What the documents say to type, typed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


def clone(folder: Path) -> Path:
    kept = shutil.ignore_patterns(".venv", ".git", "outputs", "tests", "__pycache__")
    return shutil.copytree(ROOT, folder / "clone", ignore=kept)


TYPED = {
    "README.md": "test_the_readme_word_for_word",
    "your_task.md": "test_a_task_of_ones_own_word_for_word",
    "rewards.md": "test_the_readme_word_for_word",
    "coming_from.md": "tests/test_coming_from.py",
}
"""Who runs a page's lines for a shell."""
ELSEWHERE = {
    "make demo": "tests/test_demo.py",
    "make test": ".ci/run",
    "python -m cluster submit": "tests/test_ray_job.py",
    "python -m cluster view": "tests/test_web.py",
    "tensorboard --logdir": "tests/test_trackers.py",
}
"""Who runs a line that the test of its page does not."""


def lines_for_a_shell(page: str) -> list[str]:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line]


def test_every_page_with_lines_to_type_has_a_test():
    with_lines = {page.name for page in PAGES if lines_for_a_shell(str(page.relative_to(ROOT)))}
    assert with_lines == set(TYPED)
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_the_readme_word_for_word(tmp_path: Path):
    folder = clone(tmp_path)
    (folder / "more.yaml").write_text(
        "prepare: recipes.demo:build_only\n"  # 80 steps of a random model, in a minute
        "sampler: {group_size: 2, sampling: {max_tokens: 8}}\n"
        "schedule: {groups_per_step: 2}\neval: {prompts: 4, every: 40}\n"
    )
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    (folder / "run_qwen.sh").write_text("python3 -m verl.trainer.main_ppo data.seed=3")
    more = "more.yaml seed=3 --learner.optim.lr 2e-4"
    typed = 0
    for line in [*lines_for_a_shell("README.md"), *lines_for_a_shell("docs/rewards.md")]:
        if line.startswith(tuple(ELSEWHERE)):
            continue
        # The run that the others look at was made small, and they are told so.
        smaller = line if more in line else line.replace("demo.yaml", f"demo.yaml {more}")
        smaller = smaller.replace("my-model --", "").replace(" recipe.yaml", " recipes/smoke.yaml")
        done = subprocess.run(
            smaller.replace("python", sys.executable, 1),
            shell=True,
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stdout[-3000:] + done.stderr[-2000:]
        # A dataset without answers that a number can be read from, or a machine without something,
        # is said with exit code 1; a line that is no command is 2.
        assert done.returncode == 0 or (done.returncode == 1 and "doctor" in line), (
            f"{line}\n{said}"
        )
        typed += 1
    assert typed == 13
    assert (folder / "my-model" / "config.json").is_file()
    one, two = (
        json.loads((folder / "outputs" / name / "result.json").read_text())["weights_digest"]
        for name in ("demo", "demo-replay")
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_a_task_of_ones_own_word_for_word(tmp_path: Path):
    page = (ROOT / "docs" / "your_task.md").read_text()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.S))
    folder = clone(tmp_path)
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
