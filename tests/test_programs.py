"""Programs of the model: the sandbox holds in each tier, and honest programs are not hurt."""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.programs import code, confine
from rewards.programs.__main__ import main, suite_for
from rewards.programs.frames import Malformed, decode
from rewards.programs.grade import Report, grade, program_in
from rewards.programs.sandbox import TIERS, Limits, Sandbox, Tier, sweep, why_not
from rewards.programs.suite import stdin, suite_of

ROOT = Path(__file__).resolve().parent.parent
HONEST = sorted((ROOT / "tests/programs/honest").glob("*.py"))
HOSTILE = sorted((ROOT / "tests/programs/hostile").glob("*.py"))
DEADLINE = 1.0
CANARY = Path("/tmp/cohort_canary.txt")
MARKERS = ("/tmp/cohort_marker", "/tmp/hostile_marker", "/dev/shm/hostile_block")
PORT = 48213


@pytest.fixture(params=TIERS[:-1])
def tier(request: pytest.FixtureRequest) -> Tier:
    if reason := why_not(request.param):
        pytest.skip(f"no {request.param} sandbox here: {reason}")
    return request.param


def graded(path: Path, tier: Tier, *, seconds: float, packages: tuple[str, ...] = ()) -> Report:
    return grade(
        path.read_text(encoding="utf-8"),
        suite_for(path),
        tier=tier,
        limits=Limits(seconds=seconds),
        packages=packages,
        seconds=3 * seconds,
    )


class Outside:
    """What a candidate may not reach: servers, a file, an environment variable."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._stack = contextlib.ExitStack()
        path = "/tmp/cohort_canary.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", PORT)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, path),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0cohort_canary"),
        ):
            server = self._stack.enter_context(socket.socket(family, kind))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
            if kind == socket.SOCK_STREAM:
                server.listen()
            server.settimeout(0.1)
            self._threads.append(threading.Thread(target=self._watch, args=(name, server, kind)))
            self._threads[-1].start()
        CANARY.write_text("canary\n")
        CANARY.chmod(0o666)  # nothing but the sandbox protects it

    def _watch(self, name: str, server: socket.socket, kind: int) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                if kind == socket.SOCK_STREAM:
                    server.accept()[0].close()
                else:
                    server.recv(64)
                self.hits.append(name)

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()
        for path in (CANARY, Path("/tmp/cohort_canary.sock")):
            path.unlink(missing_ok=True)

    def harmed(self) -> list[str]:
        found = [f"socket reached: {name}" for name in self.hits]
        found += [f"{path} is there" for path in MARKERS if os.path.exists(path)]
        if not CANARY.exists() or CANARY.read_text() != "canary\n":
            found.append("the canary file is changed")
        return found


@pytest.fixture
def outside() -> Iterator[Outside]:
    outside = Outside()
    yield outside
    outside.close()


def leftovers() -> list[str]:
    return [*survivors(), *map(str, Path("/tmp").glob("cohort-program-*"))]


def survivors() -> list[str]:
    """Processes of sandboxes and of candidates."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (
                "runner.py" in said
                or "bwrap" in said
                or said.startswith(("sleep 300", "/bin/sleep"))
            ):
                found.append(f"{process.name}: {said}")
    return found


def ipc_objects() -> str:
    return "".join(Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "sem", "msg"))


def expected_of(path: Path) -> list[str]:
    match = re.search(r"^# expect: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, f"{path.name} says nothing of what to expect"
    return match[1].split()


@pytest.mark.parametrize(
    ("tier", "programs"),
    [
        pytest.param("bubblewrap", HOSTILE[1::3], id="bubblewrap, a third"),
        pytest.param("landlock", HOSTILE[::3], id="landlock, a third"),
        pytest.param("bubblewrap", HOSTILE, id="bubblewrap", marks=pytest.mark.slow),
        pytest.param("landlock", HOSTILE, id="landlock", marks=pytest.mark.slow),
    ],
    indirect=["tier"],
)
def test_two_hundred_hostile_programs_win_nothing_and_leave_nothing(
    tier: Tier, programs: list[Path], outside: Outside, monkeypatch: pytest.MonkeyPatch
):
    """None is rewarded, none outlives its deadline by a second, nothing outside changes, and behind
    each of them an honest program passes."""
    assert len(HOSTILE) == 200
    monkeypatch.setenv("WANDB_API_KEY", "canary-81273645")
    files, objects = len(os.listdir("/proc/self/fd")), ipc_objects()
    others = set(leftovers())  # of scorers that earlier tests have killed
    wrong: list[str] = []
    for path in programs:
        report = graded(path, tier, seconds=DEADLINE)
        won = report.outcome == "scored" and report.passed == report.tests
        late = report.seconds > DEADLINE + 1.0
        if won or late or report.outcome not in expected_of(path):
            wrong.append(f"{path.name}: {report}")
        wrong += [f"after {path.name}: {harm}" for harm in outside.harmed()]
        honest = grade(
            "print(int(input()) + 1)",
            [stdin("1", "2")],
            tier=tier,
            limits=Limits(seconds=DEADLINE),
            seconds=DEADLINE,
        )
        if honest.passed != 1:
            wrong.append(f"after {path.name}, an honest program: {honest}")
    assert not wrong, "\n".join(wrong)
    assert set(leftovers()) <= others
    assert len(os.listdir("/proc/self/fd")) == files
    assert ipc_objects() == objects


def test_a_hundred_honest_programs_all_pass(tier: Tier):
    assert len(HONEST) == 100
    reports = {path.name: graded(path, tier, seconds=5.0) for path in HONEST}
    failed = {n: r for n, r in reports.items() if r.outcome != "scored" or r.passed < r.tests}
    assert not failed, "\n".join(f"{name}: {report}" for name, report in failed.items())


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("print('x' * 10**6)", "", "x" * 10**6),
        ("for i in range(10**5):\n    print(i)", "", "\n".join(map(str, range(10**5)))),
        ("import sys\nprint(sum(map(int, sys.stdin)))", "7\n" * 10**5, str(7 * 10**5)),
        ("import numpy as np\nprint(np.arange(4).sum(), np.eye(2) @ [1, 2])", "", "6 [1. 2.]"),
    ],
    ids=["one long line", "many lines", "large input", "numpy"],
)
def test_honest_programs_may_be_large_and_use_what_they_are_allowed(
    tier: Tier, program: str, given: str, expected: str
):
    report = grade(
        program,
        [stdin(given, expected)],
        tier=tier,
        limits=Limits(seconds=5.0),
        packages=("numpy",),
        seconds=5.0,
    )
    assert report.passed == 1, report


FORGERIES = {
    "equals everything": "class Y:\n def __eq__(s, o): return True\ndef f(x): return Y()",
    "writes a verdict and leaves": (
        "import os, sys\ndef f(x):\n"
        " g = sys._getframe()\n"
        " while g:\n"
        "  for v in list(g.f_locals.values()):\n"
        "   if isinstance(v, list): v[:] = [True] * len(v)\n"
        "  g = g.f_back\n"
        ' os.write(3, b\'{"value": ["bool", true]}\\n\')\n'
        " os._exit(0)"
    ),
    "reads the expected value from its caller": (
        "import sys\ndef f(x):\n"
        " g = sys._getframe().f_back\n"
        " while g:\n"
        "  for n in ('expected', 'answer', 'y', 'want'):\n"
        "   if n in g.f_locals: return g.f_locals[n]\n"
        "  g = g.f_back\n"
    ),
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "patches builtins": (
        "import builtins\n"
        "builtins.all = builtins.any = builtins.bool = lambda *a: True\n"
        "def f(x): return None"
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_that_win_in_process_fail(name: str):
    verdict = code(
        f"```python\n{FORGERIES[name]}\n```", '["assert f(3) == 41", "assert f(4) == 5"]'
    )
    assert verdict.value == 0.0
    assert verdict.outcome in ("scored", "tampered")


# -- no tier, no code -----------------------------------------------------------------------------


def without_sandboxes() -> None:
    """In a child, before its program: a kernel without namespaces and Landlock."""
    column = list(confine.ARCHITECTURES).index(os.uname().machine)
    denied = [confine.LANDLOCK_CREATE, confine.DENIED["unshare"][column], confine.CLONE3[column]]
    code = [(confine.LOAD, 0, 0, confine.NUMBER)]
    for number in denied:
        code += [(confine.EQUAL, 0, 1, number), (confine.RETURN, 0, 0, confine.ERRNO | 38)]
    code += [
        (confine.EQUAL, 0, 4, confine.CLONE[column]),
        (confine.LOAD, 0, 0, confine.ARGUMENTS[0]),
        (confine.ANY_BIT, 0, 1, 0x7E020000),  # CLONE_NEW*
        (confine.RETURN, 0, 0, confine.ERRNO | 1),
        (confine.RETURN, 0, 0, confine.ALLOW),
        (confine.RETURN, 0, 0, confine.ALLOW),
    ]
    confine.install_seccomp(b"".join(struct.pack("=HBBI", *each) for each in code))


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=without_sandboxes,
    )


def test_without_a_sandbox_no_program_runs_unless_that_is_asked_for(tmp_path: Path):
    (tmp_path / "p.py").write_text('# tests: [{"stdin": "", "stdout": "42"}]\nprint(42)\n')
    refused = bare("-m", "rewards.programs", str(tmp_path))
    assert refused.returncode == 1
    assert "need a sandbox and this machine gives none" in refused.stderr
    assert "bubblewrap:" in refused.stderr and "landlock:" in refused.stderr, "each with its reason"
    waived = bare("-m", "rewards.programs", str(tmp_path), "--allow-unsandboxed-code")
    [line] = map(json.loads, waived.stdout.splitlines())
    assert (line["tier"], line["reward"]) == ("none", 1.0), waived.stderr
    doctor = bare("-m", "cluster", "doctor")
    assert "programs       refused" in doctor.stdout


def test_a_run_that_grades_programs_is_refused_before_it_starts(tiny: Path, tmp_path: Path):
    arguments = (
        "-m", "cluster", "train", "recipes/demo.yaml", "prepare=", "eval.dataset=",
        f"model.path={tiny / 'model'}", f"prompts.dataset={tiny / 'train.jsonl'}",
        f"output_dir={tmp_path}", "rewards.verifiers={code: 1.0}",
    )  # fmt: skip
    refused = bare(*arguments)
    assert refused.returncode == 2, refused.stderr
    assert "set rewards.allow_unsandboxed_code=true" in refused.stderr


# -- the command ----------------------------------------------------------------------------------


def test_the_command_prints_one_line_per_program(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "a.py").write_text('# tests: [{"call": "f", "arguments": [1], "expected": 2}]\n'
                                   "def f(x): return x + 1\n")  # fmt: skip
    (tmp_path / "b.py").write_text("print('no tests')\n")
    (tmp_path / "c.py").write_text("print(1)\n")
    (tmp_path / "c.json").write_text('{"inputs": [""], "outputs": ["2"]}')
    (tmp_path / "d.py").write_text("while True: pass\n")
    (tmp_path / "e.py").write_text("# tests: [3]\n")
    assert main([str(tmp_path), "--seconds", "0.5"]) == 0
    lines = {
        line["program"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())
    }
    found = {name: (line["outcome"], line["reward"]) for name, line in lines.items()}
    assert found == {
        "a.py": ("scored", 1.0),
        "b.py": ("scored", None),
        "c.py": ("scored", 0.0),
        "d.py": ("timeout", None),
        "e.py": ("unscorable", None),
    }
    assert {"outcome", "reason", "wall", "tier"} <= lines["a.py"].keys()
    assert "wrong answer: '1" in lines["c.py"]["reason"]
    assert main([str(tmp_path / "nowhere")]) == 2


def test_a_sandbox_whose_controller_dies_dies_with_it(tier: Tier):
    """The scoring child is killed while a program runs in it."""
    program = "from rewards.programs.sandbox import Sandbox\n" \
        f"s = Sandbox('import time; time.sleep(60)', tier={tier!r})\nprint('up', flush=True)\n" \
        "s.run({'stdin': ''}, 60)\n"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    time.sleep(0.3)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 5
    while (left := survivors()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    sweep()  # nobody was left to remove its folder: the next process does
    assert not leftovers()


def test_state_does_not_pass_from_one_test_to_the_next(tier: Tier):
    program = "import os\nprint(os.listdir('.'))\nopen('mark', 'w').close()"
    with Sandbox(program, tier=tier) as sandbox:
        assert [sandbox.run({"stdin": ""}).stdout for _ in range(3)] == [b"[]\n"] * 3


# -- tests of problems ----------------------------------------------------------------------------


def kinds(answer: str) -> list[tuple[str, bool]]:
    """(what goes in, weak) of each test."""
    tests = suite_of(answer)
    return [(json.dumps(test.request, sort_keys=True), test.weak) for test in tests]


@pytest.mark.parametrize(
    ("assertion", "goes_in", "right", "wrong"),
    [
        ("assert f(1) == 7", "f(1)", 7, 8),
        ("assert 7 == f(1)", "f(1)", 7, 8),
        ("assert f(1) != 7", "f(1)", 8, 7),
        ("assert f(1)", "f(1)", [0], []),
        ("assert not f(1)", "f(1)", 0, 1),
        ("assert f(1) is None", "f(1)", None, 0),
        ("assert f(1) in (3, 4)", "f(1)", 4, 5),
        ("assert 5 < f(1)", "f(1)", 6, 5),
        ("assert f(1) == [(1, 'a'), {2: None}]", "f(1)", [(1, "a"), {2: None}], [[1, "a"], {}]),
        ("assert f(1) == set([1, 2])", "f(1)", {2, 1}, {1}),
        ("assert f(1) == -2 ** 3 + 1", "f(1)", -7, 9),
        ("assert f(1) == 'ab' * 3", "f(1)", "ababab", "ab"),
        ("assert math.isclose(f(1), 0.5, abs_tol=0.01)", "f(1)", 0.505, 0.52),
        ("assert abs(f(1) - 0.5) < 1e-2", "f(1)", 0.505, 0.52),
        ("assert abs(0.5 - f(1)) <= 1e-2", "f(1)", 0.505, 0.52),
        ("assert sorted(f(1)) == [1, 2], 'message'", "sorted(f(1))", [1, 2], [2, 1]),
    ],
)
def test_an_assertion_is_split_so_that_its_literal_stays_outside(
    assertion: str, goes_in: str, right: object, wrong: object
):
    [test] = suite_of(json.dumps([assertion]))
    assert test.request == {"evaluate": goes_in, "setup": ""}
    assert not test.weak
    assert test.accepts(right)
    assert not test.accepts(wrong)


def test_what_cannot_be_split_is_labelled():
    assert kinds('["assert f(1) == g(1)"]')[0][1] is True
    loop = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i"
    tests = suite_of(json.dumps({"test": loop, "entry_point": "f"}))
    assert [test.weak for test in tests] == [True]
    verdict = code("def f(x):\n    return x", json.dumps({"test": loop, "entry_point": "f"}))
    assert (verdict.value, verdict.parts["weak_tests"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "42",
        '"text"',
        "{}",
        '[{"stdin": "1"}]',
        "def f(:",
        '{"inputs": [1], "outputs": []}',
    ],
)
def test_a_reference_without_tests_is_our_failure(answer: str):
    with pytest.raises(ValueError):
        suite_of(answer)


@settings(max_examples=3_000, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_reading_a_result_raises_nothing_unexpected(data: bytes):
    for text in (data, b'{"value": ' + data + b"}\n"):
        with contextlib.suppress(ValueError, TypeError, RecursionError, OverflowError):
            decode(text)


@settings(max_examples=3_000, deadline=None)
@given(st.one_of(st.text(max_size=300), st.from_regex(r"(assert [fx0-9()<>= +*-]{1,30}\n?){1,4}")))
def test_reading_a_reference_raises_value_errors_only(text: str):
    with contextlib.suppress(ValueError):
        suite_of(text)


@settings(max_examples=3_000, deadline=None)
@given(st.lists(st.sampled_from(["```", "```python\n", "\n", "x=1", "</think>", "~"]), max_size=30))
def test_a_program_is_found_in_anything(pieces: list[str]):
    text = "".join(pieces)
    assert program_in(text) in text


def test_a_frame_is_exactly_what_the_harness_writes():
    assert decode(b'{"value": ["tuple", [["int", "0x2"], ["float", "nan"]]]}\n')[0] == 2
    for bad in (
        b"",
        b"{}\n",
        b'{"value": 3}\n',
        b'{"value": ["set", [["list", []]]]}\n',
        b"1\n1\n",
    ):
        with pytest.raises((ValueError, TypeError)):
            decode(bad)
    assert issubclass(Malformed, Exception)


# -- without root ---------------------------------------------------------------------------------


def as_nobody(*arguments: str) -> list[dict]:
    """Lines of the command, run by an ordinary user with the system's interpreter."""
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    if os.geteuid() != 0 or not os.path.exists(python):
        pytest.skip(f"needs root, to become somebody else, and {python}, which anybody can read")
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    done = subprocess.run(
        ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", python,
         "-m", "rewards.programs", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode or "no " in done.stderr:
        pytest.skip(f"an ordinary user gets no sandbox here: {done.stderr[-300:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


ENDED = """
import os, time
from rewards.programs import confine
child = os.fork()
if child == 0:
    os._exit(0)
time.sleep(0.2)
print(confine.written(child))
"""


def test_a_program_that_has_just_ended_does_not_end_the_runner():
    """An ordinary user may not read what a process wrote once it has ended. The runner looks at a
    program now and then, and fell over where that came between its end and its burial: an honest
    program was called a tampering one, on a busy machine."""
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    if os.geteuid() != 0 or not os.path.exists(python):
        pytest.skip(f"needs root, to become somebody else, and {python}, which anybody can read")
    command = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", python]
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "-c", ENDED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "0", done.stderr


def test_an_ordinary_user_is_protected_as_well(tier: Tier, outside: Outside, tmp_path: Path):
    """Without a uid of its own for the candidate: what needs no deadline, and honest programs."""
    tmp_path.chmod(0o755)
    (tmp_path / "tests.json").write_text((HOSTILE[0].parent / "tests.json").read_text())
    chosen = [p for p in HOSTILE if "timeout" not in expected_of(p)]
    assert len(chosen) > 120
    for path in chosen:
        (tmp_path / path.name).write_text(path.read_text())
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path.parent.parent, 0o755)
    lines = as_nobody(str(tmp_path), "--tier", tier, "--seconds", "2")
    wrong = [
        line for line in lines
        if line["reward"] or line["outcome"] not in expected_of(tmp_path / line["program"])
    ]  # fmt: skip
    assert not wrong, wrong
    assert not outside.harmed()
    honest = as_nobody(str(HONEST[0].parent), "--tier", tier)
    failed = [line for line in honest if line["reward"] != 1.0]
    assert len(honest) == 100 and not failed, failed
    assert not survivors()


# -- found by trying ------------------------------------------------------------------------------

ATTACKS = {
    "fill the disk through unlinked files held by mappings": """
import mmap, os
keep = []
while True:
    fd = os.open("x", os.O_CREAT | os.O_RDWR)
    os.unlink("x")
    try:
        os.posix_fallocate(fd, 0, 64 << 20)
    except OSError:
        os.write(fd, bytes(8 << 20))
    keep.append(mmap.mmap(fd, 4096))
    os.close(fd)
""",
    "make files while output trickles": """
import os, threading, time
def trickle():
    while True:
        os.write(2, b".")
        time.sleep(0.002)
threading.Thread(target=trickle, daemon=True).start()
for i in range(10 ** 7):
    open(f"f{i}", "w").close()
""",
    "signal others by fcntl": """
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, 8, os.getppid())
fcntl.fcntl(r, 10, 9)
WON = True
""",
    "outlive the parent": """
import ctypes
WON = ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0
""",
    "leave the session": "import os\nos.setsid()\nWON = True",
    "send datagrams through a socket pair": """
import socket
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
a.sendto(b"hit", "\\0cohort_canary")
WON = True
""",
    "change a semaphore": """
import ctypes, struct
one = struct.pack("Hhh", 0, 1, 2048)
WON = ctypes.CDLL(None).syscall(220, 0, one, 1, None) == 0
""",
    "limit others": "import os, resource\nresource.prlimit(os.getppid(), 7, (3, 3))\nWON = True",
    "slow others": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\nWON = True",
    "grow its input": """
import os
fd = os.open("/proc/self/fd/0", os.O_RDWR)
os.write(fd, bytes(1 << 20))
WON = True
""",
    "a result whose keys all collide": """
import os
items = b", ".join(b'["int", "%s"]' % hex(k * (2 ** 61 - 1)).encode() for k in range(1, 60000))
os.write(3, b'{"value": ["set", [' + items + b']]}\\n')
os._exit(0)
""",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_that_once_worked(name: str, tier: Tier, outside: Outside):
    program = f"WON = False\n{ATTACKS[name]}\ndef solve(n):\n    return 41 + WON\n"
    tests = suite_of('[{"call": "solve", "arguments": [1], "expected": 42}]')
    report = grade(program, tests, tier=tier, limits=Limits(seconds=1.0), seconds=2.0)
    assert report.passed == 0, report
    assert report.seconds < 2.0, report
    assert not outside.harmed() and not leftovers()


@pytest.mark.parametrize(
    ("tests", "program", "passed"),
    [
        ('["def test_add():\\n    assert add(1, 2) == 3"]', "pass", False),

        ('["s = S()\\nassert s.up() == 1\\nassert s.up() == 2"]',
         "class S:\n    n = 0\n    def up(self):\n        self.n += 1\n        return self.n",
         True),
        ('["assert (r := f(3)) == 9\\nassert r > 5"]', "def f(x):\n    return x * x", True),
        ('["f()\\nassert n == 1"]', "n = 0\ndef f():\n    global n\n    n += 1", True),
        ('["assert f() == 0.5"]',
         "from fractions import Fraction\ndef f():\n    return Fraction(1, 2)", True),
        ('["assert f() == {\'a\'}"]', "def f():\n    return {'a': 1}.keys()", True),
        ('{"inputs": [[5]], "outputs": [[5]], "fn_name": "f"}', "def f(x):\n    return [x]", True),
        ('["assert f(1) == 2"]',
         "def f(x):\n    return x + 1\nif __name__ == '__main__':\n    f(int(input()))", True),
        ('[{"stdin": "", "stdout": "0001"}]', "print(1)", False),
        ('[{"stdin": "", "stdout": "1E2"}]', "print(100)", False),
        ('[{"stdin": "", "stdout": " *\\n***"}]', "print('*')\nprint('***')", False),
        ('[{"stdin": "", "stdout": "2"}]',
         "Here:\n```python\nprint(2)\n```\nIt prints\n```\n3\n```", True),
    ],
)  # fmt: skip
def test_tests_mean_what_they_say(tests: str, program: str, passed: bool):
    assert (code(program, tests).value == 1.0) is passed


def test_tests_that_nobody_would_call_are_refused():
    for head in ("async def test_f():", "class T:\n  def test(self):"):
        with pytest.raises(ValueError, match="would never be called"):
            suite_of(f"{head}\n      assert f() == 1")
    assert [t.weak for t in suite_of('["assert all(f(a) == b for a, b in [(1, 2)])"]')] == [True]


def test_a_candidate_dies_with_a_killed_controller(tmp_path: Path):
    """Also one that tried to get away, in the tier without a pid namespace."""
    if why_not("landlock"):
        pytest.skip("no landlock sandbox here")
    (tmp_path / "p.py").write_text(
        "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
        "try:\n    os.setsid()\nexcept OSError:\n    pass\ntime.sleep(302)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.programs", str(tmp_path), "--tier", "landlock",
         "--seconds", "60", "--total-seconds", "60"], cwd=ROOT,
    )  # fmt: skip
    try:
        deadline, seen, before = time.monotonic() + 40, survivors(), []
        while not (len(seen) == 2 and seen == before) and time.monotonic() < deadline:
            time.sleep(0.3)  # the pair that tries the tier out is gone by then
            seen, before = survivors(), seen
        assert len(seen) == 2, "the runner and its candidate"
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while survivors() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not survivors()
    sweep()
