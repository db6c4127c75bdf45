"""The rules of docs/architecture: who may import whom, and where a word may stand."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINE = ("rewards", "rollout", "learner", "cluster")
FILES = [path for package in LINE for path in sorted((ROOT / package).rglob("*.py"))]

ONLY_IN = {
    "ray": lambda f: f.relative_to(ROOT).parts[0] == "cluster",
    "deepspeed": lambda f: (
        f.name in ("engine.py", "source.py", "shards.py") and f.parent.name == "learner"
    ),
    "vllm": lambda f: (
        f.name in ("sampler.py", "receive.py", "transfer.py", "twin.py", "broadcast.py")
        and f.parent.name == "rollout"
    ),
}
DEVICE_WORDS = re.compile(r"\b(cuda|nccl|gloo)\b", re.IGNORECASE)
DEVICE_FILES = {
    "cluster/device.py", "cluster/config.py",
    "rollout/transfer.py", "rollout/receive.py", "rollout/broadcast.py",  # backends by name
}  # fmt: skip


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(top-level name, line, at module level) of every import."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found += [(name.split(".")[0], node.lineno, id(node) in top) for name in names]
    return found


def test_packages_import_only_to_their_left():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FILES
        for name, line, _ in imports(path)
        if name in LINE and LINE.index(name) > LINE.index(path.relative_to(ROOT).parts[0])
    ]
    assert not wrong, f"the line is {' <- '.join(LINE)}: {wrong}"


ROOMS = ("cluster.planner", "cluster.tools", "cluster.web")
DOORS = {"cluster/cli.py", "cluster/tools/doctor.py"}


def test_what_runs_needs_no_command_around_it():
    wrong = [
        f"{path.relative_to(ROOT)} imports {node.module}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOMS)
        if str(path.relative_to(ROOT)) not in DOORS
        if not path.match(f"{(node.module or '').split('.')[1]}/*.py")
    ]
    assert not wrong, f"{ROOMS} are entered through {sorted(DOORS)} alone: {wrong}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_stays_in_its_files(library: str):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for name, line, _ in imports(path)
        if name == library and not ONLY_IN[library](path)
    ]
    assert not wrong, f"{library} is imported outside its files: {wrong}"


def test_only_the_device_file_knows_devices():
    def code_of(path: Path) -> str:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):  # docstrings may speak of anything
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""
        return ast.unparse(tree)

    wrong = [
        f"{path.relative_to(ROOT)}: {sorted(set(found))}"
        for path in FILES
        if str(path.relative_to(ROOT)) not in DEVICE_FILES
        and (found := DEVICE_WORDS.findall(code_of(path)))
    ]
    assert not wrong, f"device names belong into {sorted(DEVICE_FILES)}: {wrong}"


def test_config_has_a_type():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"\b(getattr|hasattr)\(config\b", line)
    ]
    assert not wrong, f"read a config by its fields: {wrong}"


def test_user_and_world_errors_are_never_asserts():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong, f"raise ValueError or RuntimeError: {wrong}"


def test_records_import_in_milliseconds():
    code = (
        "import sys; import rollout, rewards, learner, cluster; "
        "heavy = ('torch', 'vllm', 'deepspeed', 'ray', 'transformers'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", f"importing the packages loads {done.stdout.strip()}"


def test_nothing_outside_is_unpickled_or_evaluated():
    forbidden = re.compile(r"(eval|exec|torch\.load|(pickle|dill)\..*)")
    tensors_only = "weights_only=True"
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and forbidden.fullmatch(ast.unparse(node.func))
        if tensors_only not in map(ast.unparse, node.keywords)
    ]
    # The one place that runs what the model wrote, behind everything that a sandbox takes away.
    wrong = [each for each in wrong if not each.startswith("rewards/programs/runner.py")]
    assert not wrong, wrong


def test_no_wait_looks_at_a_clock_that_jumps():
    """The wall clock is for stamps in records; whatever is measured or waited for has the monotonic
    one."""
    wall = re.compile(r"time\.(time|time_ns|localtime|gmtime)|datetime\.(datetime\.)?(now|utcnow)")
    found = [
        (str(path.relative_to(ROOT)), ast.unparse(node.func))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and wall.fullmatch(ast.unparse(node.func))
    ]
    stamps = ("metrics", "poison", "supervise", "sweep", "timeline", "tools/probe", "trackers")
    assert {*found} == {(f"cluster/{name}.py", "time.time") for name in stamps}
