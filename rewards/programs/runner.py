"""The trusted process inside the sandbox: one candidate process per test, nothing secret.

`runner.main()` with a job on stdin, one JSON line each: first the settings with the
program, then one line per test. For each test, one JSON line on stdout that says how the process
ended and how many bytes follow, then those bytes: what the candidate wrote, unread.

The candidate is a fork of this process that has closed all but its own pipes and given up what
`confine.py` takes. It holds the program and the inputs; expected answers never come in here.
"""

import atexit
import builtins
import contextlib
import errno
import fcntl
import gc
import io
import json
import os
import select
import signal
import sys
import threading
import time
import types

import confine  # pyright: ignore[reportImplicitRelativeImport]

POLL_SECONDS = 0.05
RESULT_FD, SETUP_FD = 3, 4
KEPT_FDS = 200
"""From here on, a candidate keeps what the runner opened for it: folders to import from."""
STDERR_KEPT = 2000


def main() -> None:
    confine.hide()
    confine.die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    settings = json.loads(requests.readline())
    sys.path[:1] = settings["packages"]  # in place of this folder
    if settings["reopen"]:
        _reopen_imports()
    gc.freeze()  # what is here before the fork is not copied by a collection behind it
    _send(replies, b"{}\n")
    for number, line in enumerate(requests):
        header, body = _run(settings, json.loads(line), number)
        _send(replies, json.dumps(header).encode() + b"\n" + body)
        os.chmod(settings["scratch"], 0o711)
        for name in os.listdir(settings["scratch"]):  # the next test finds nothing of this one
            confine.remove(os.path.join(settings["scratch"], name))
    os._exit(0)  # what an interpreter does at its end takes milliseconds


def _send(replies: io.FileIO, data: bytes) -> None:
    while data:
        data = data[replies.write(data) :]


def _reopen_imports() -> None:
    """Name the folders of modules by open descriptors: the candidate's uid may not be allowed to
    walk to an interpreter in somebody's home folder."""
    for number, folder in enumerate(sys.path):
        if not os.path.isdir(folder):
            continue
        opened = os.open(folder, os.O_PATH)
        os.dup2(opened, KEPT_FDS + number)
        os.close(opened)
        sys.path[number] = f"/proc/self/fd/{KEPT_FDS + number}"
        for module in list(sys.modules.values()):  # packages keep their own paths
            paths = vars(module).get("__path__", [])
            paths[:] = [path.replace(folder, sys.path[number], 1) for path in paths]
    sys.path_importer_cache.clear()


def _run(settings: dict, test: dict, number: int) -> tuple[dict, bytes]:
    """How the candidate of one test ended; stdout, result and the end of stderr in a row."""
    folder = os.path.join(settings["scratch"], str(number))
    os.mkdir(folder, 0o700)
    os.chmod(settings["scratch"], 0o511)  # where the candidate's uid is ours, it may not write here
    if settings["uid"]:
        os.chown(folder, settings["uid"], settings["uid"])
    outputs = [os.pipe() for _ in range(4)]
    source = _input(test.get("stdin", ""))
    runner = os.getpid()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        writes = [write for _, write in outputs]
        _become_candidate(settings, test, folder, runner, [source, *writes])
    for fd in (source, *(write for _, write in outputs)):
        os.close(fd)
    *reads, setup = (read for read, _ in outputs)
    # It says what it could not give up, or closes this pipe before a line of the program has run.
    trouble = os.read(setup, STDERR_KEPT).decode("utf-8", "replace")
    os.close(setup)
    seen, ended = _watch(settings, child, reads, started + test["seconds"])
    for target in [child, -1] if settings["owns_pids"] else [child]:
        with contextlib.suppress(OSError):
            os.kill(target, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    for read in reads:
        os.close(read)
    header = {
        "ended": f"no start: {trouble}" if trouble else ended,
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory_mib": usage.ru_maxrss / 1024,
        "sizes": [len(data) for data in seen],
    }
    return header, b"".join(seen)


def _input(text: str) -> int:
    """A read-only file in memory: a candidate that does not read its input blocks nobody."""
    memory = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    readable = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    os.close(memory)
    return readable


def _watch(
    settings: dict, child: int, outputs: list[int], deadline: float
) -> tuple[list[bytearray], str]:
    """What came out until the candidate ended, and by what it ended or has to be ended."""
    seen = [bytearray() for _ in outputs]
    end = os.pidfd_open(child)
    waiting = [end, *outputs]
    total = 0
    looked_at = time.monotonic()
    try:
        while True:
            left = max(deadline - time.monotonic(), 0)
            # Once the process has ended, only what is in the pipes is left to read. It is looked
            # at before the clock: a slow runner is not the program's fault.
            wait = min(left, POLL_SECONDS) if end in waiting else 0
            ready = select.select(waiting, [], [], wait)[0]
            if end in ready:
                waiting.remove(end)
            for fd in ready:
                if fd == end:
                    continue
                data = os.read(fd, 1 << 16)
                total += len(data)
                if not data:
                    waiting.remove(fd)
                seen[outputs.index(fd)] += data
                del seen[2][:-STDERR_KEPT]
            if total > settings["output_mib"] << 20:
                return [bytearray() for _ in outputs], "output"
            if end not in waiting:
                if not ready:
                    return seen, "by itself"
                continue
            if left <= 0:
                return seen, "timeout"
            if time.monotonic() - looked_at > POLL_SECONDS:
                if _overfull(settings, child):
                    return seen, "files"
                looked_at = time.monotonic()
    finally:
        os.close(end)


def _overfull(settings: dict, child: int) -> bool:
    """More files than allowed; or, where the scratch folder has no size of its own, more written
    than would fill it four times over (what is written and deleted may be held open)."""
    if settings["scratch_is_sized"]:
        found = os.statvfs(settings["scratch"])
        return found.f_files - found.f_ffree > settings["files"]
    if confine.written(child) > 4 * settings["scratch_mib"] << 20:
        return True
    count = 0
    folders = [settings["scratch"]]
    while folders and count <= settings["files"]:
        try:
            for entry in os.scandir(folders.pop()):
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return count > settings["files"]


# -- the candidate --------------------------------------------------------------------------------


def _become_candidate(settings: dict, test: dict, folder: str, runner: int, fds: list[int]) -> None:
    """Never returns. Until `_give_up` is done, no line of the program has run."""
    status = 125
    try:
        for number, fd in enumerate(fds):  # out of each other's way first
            os.dup2(fd, 100 + number)
        for number, target in enumerate((0, 1, RESULT_FD, 2, SETUP_FD)):
            os.dup2(100 + number, target)
        os.closerange(SETUP_FD + 1, KEPT_FDS)
        try:
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _give_up(settings, test["seconds"], folder, runner)
        except BaseException as error:
            os.write(SETUP_FD, f"{type(error).__name__}: {error}".encode())
            return
        finally:
            os.close(SETUP_FD)
        status = _execute(settings["program"], test)
    finally:
        os._exit(status)


def _give_up(settings: dict, seconds: float, folder: str, runner: int) -> None:
    ruleset = confine.landlock(settings["readable"], folder) if settings["landlock"] else -1
    if settings["uid"]:
        confine.drop_uid(settings["uid"])
    confine.die_with_parent(runner)
    confine.hide(False)  # the runner reads how much it has written
    confine.limit(
        seconds=seconds,
        memory_mib=settings["memory_mib"],
        file_mib=settings["scratch_mib"],
        threads=settings["threads"] if settings["uid"] or settings["owns_pids"] else 0,
    )
    if settings["landlock"]:
        confine.install_landlock(ruleset)
    if settings["seccomp"]:
        may_truncate = settings["scratch_is_sized"]
        program = confine.seccomp_filter(os.getpid(), may_truncate=may_truncate)
        confine.install_seccomp(program)


def _execute(program: str, test: dict) -> int:
    """Run the program as `__main__`, then what the test asks of it. The exit status."""
    text: dict = {"encoding": "utf-8", "errors": "surrogateescape"}
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), **text)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), **text)
    text["errors"] = "backslashreplace"
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), **text, write_through=True)
    builtins.exit = builtins.quit = sys.exit  # what `site` would have given
    sys.argv = ["program.py"]
    # Only a program that is run by itself is `__main__`; one whose functions are called is not.
    name = "__main__" if "stdin" in test else "program"
    main = types.ModuleType(name)
    main.__dict__["__file__"] = "program.py"
    sys.modules[name] = main
    status = 0
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), main.__dict__)
        if "evaluate" in test or "call" in test:
            _write_frame(_answer(main.__dict__, test))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        status = 1
        sys.excepthook(type(error), error, error.__traceback__)
    try:
        # Waits for the program's threads, as the interpreter would.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = status or 1
    return status & 0xFF


def _answer(names: dict, test: dict) -> object:
    """The value that the test asks for, from the program's own names."""
    if "evaluate" in test:
        if test["setup"]:
            exec(compile(test["setup"], "tests.py", "exec"), names)
        if test["evaluate"] is None:  # assertions that could not be split
            return True
        return eval(compile(test["evaluate"], "tests.py", "eval"), names)
    function = names.get(test["call"])
    if function is None and "Solution" in names:
        function = getattr(names["Solution"](), test["call"])
    if function is None:
        raise NameError(f"the program defines no {test['call']!r}")
    return function(*test["arguments"])


def _write_frame(value: object) -> None:
    frame = json.dumps({"value": _encoded(value, 0)}, allow_nan=False).encode() + b"\n"
    while frame:
        frame = frame[os.write(RESULT_FD, frame) :]


def _encoded(value: object, depth: int) -> list:
    """Built-in values as [type, content]; anything else by the name of its type, which equals
    nothing."""
    if depth > 100:
        return ["other", "nesting"]
    inner = depth + 1
    if value is None or isinstance(value, bool | str):
        kind = "none" if value is None else "bool" if isinstance(value, bool) else "str"
        return [kind, value if kind != "str" else str.__str__(value)]  # type: ignore[arg-type]
    if isinstance(value, int):
        return ["int", hex(value)]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(value.real), float.hex(value.imag)]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[_encoded(k, inner), _encoded(v, inner)] for k, v in pairs]]
    if isinstance(value, type({}.keys()) | type({}.items())):
        value = set(value)
    if isinstance(value, type({}.values())):
        value = list(value)
    if type(value).__module__ in ("fractions", "decimal"):
        return ["number", str(value)]
    kinds: tuple = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return [kind.__name__, [_encoded(item, inner) for item in kind.__iter__(value)]]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _encoded(value.tolist(), inner)  # type: ignore[attr-defined]
    return ["other", type(value).__name__]
