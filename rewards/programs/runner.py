"""The trusted process inside the sandbox: one candidate process per test, nothing secret.

`python -I -S runner.py` with a job on stdin, one JSON line each: first the settings with the
program, then one line per test. For each test, one JSON line on stdout that says how the process
ended and how many bytes follow, then those bytes: what the candidate wrote, unread.

The candidate is a fork of this process that has closed all but its own pipes and given up what
`confine.py` takes. It holds the program and the inputs; expected answers never come in here.
"""

import atexit
import builtins
import contextlib
import errno
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

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import confine  # pyright: ignore[reportImplicitRelativeImport]

POLL_SECONDS = 0.05
RESULT_FD = 3
KEPT_FDS = 200
"""From here on, a candidate keeps what the runner opened for it: folders to import from."""
STDERR_KEPT = 2000


def main() -> None:
    confine.hide()
    confine.die_with_parent()
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
    outputs = [os.pipe() for _ in range(3)]
    source = _input(test.get("stdin", ""))
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_candidate(settings, test, folder, [source, *(write for _, write in outputs)])
    for fd in (source, *(write for _, write in outputs)):
        os.close(fd)
    seen, ended = _watch(settings, child, [read for read, _ in outputs], started + test["seconds"])
    for target in [child, -1] if settings["owns_pids"] else [child]:
        with contextlib.suppress(OSError):
            os.kill(target, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    for read, _ in outputs:
        os.close(read)
    header = {
        "ended": ended,
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory_mib": usage.ru_maxrss / 1024,
        "sizes": [len(data) for data in seen],
    }
    return header, b"".join(seen)


def _input(text: str) -> int:
    """A read-only file in memory: a candidate that does not read its input blocks nobody."""
    memory = os.memfd_create("stdin")
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
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
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return seen, "timeout"
            # Once the process has ended, only what is in the pipes is left to read.
            ready = select.select(waiting, [], [], min(left, POLL_SECONDS) if end in waiting else 0)
            if end in ready[0]:
                waiting.remove(end)
            for fd in ready[0]:
                if fd == end:
                    continue
                data = os.read(fd, 1 << 16)
                if not data:
                    waiting.remove(fd)
                seen[outputs.index(fd)] += data
                del seen[2][:-STDERR_KEPT]
            if sum(map(len, seen)) > settings["output_mib"] << 20:
                return [bytearray() for _ in outputs], "output"
            if not ready[0]:
                if end not in waiting:
                    return seen, "by itself"
                if _overfull(settings):
                    return seen, "files"
    finally:
        os.close(end)


def _overfull(settings: dict) -> bool:
    """More files than allowed, or more bytes where the scratch folder has no size of its own."""
    if settings["scratch_is_sized"]:
        found = os.statvfs(settings["scratch"])
        return found.f_files - found.f_ffree > settings["files"]
    count = size = 0
    folders = [settings["scratch"]]
    while folders and count <= settings["files"]:
        try:
            for entry in os.scandir(folders.pop()):
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return count > settings["files"] or size > settings["scratch_mib"] << 20


# -- the candidate --------------------------------------------------------------------------------


def _become_candidate(settings: dict, test: dict, folder: str, fds: list[int]) -> None:
    """Never returns. Until `_give_up` is done, no line of the program has run."""
    status = 125
    try:
        for number, fd in enumerate(fds):  # out of each other's way first
            os.dup2(fd, 100 + number)
        for number, target in enumerate((0, 1, RESULT_FD, 2)):
            os.dup2(100 + number, target)
        os.closerange(RESULT_FD + 1, KEPT_FDS)
        os.chdir(folder)
        _give_up(settings, test["seconds"], folder)
        status = _execute(settings["program"], test)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def _give_up(settings: dict, seconds: float, folder: str) -> None:
    ruleset = confine.landlock(settings["readable"], folder) if settings["landlock"] else -1
    if settings["uid"]:
        confine.drop_uid(settings["uid"])
    confine.die_with_parent()
    confine.limit(
        seconds=seconds,
        memory_mib=settings["memory_mib"],
        file_mib=settings["scratch_mib"],
        threads=settings["threads"] if settings["uid"] or settings["owns_pids"] else 0,
    )
    if settings["landlock"]:
        confine.install_landlock(ruleset)
    if settings["seccomp"]:
        confine.install_seccomp(confine.seccomp_filter(os.getpid()))


def _execute(program: str, test: dict) -> int:
    """Run the program as `__main__`, then what the test asks of it. The exit status."""
    text: dict = {"encoding": "utf-8", "errors": "surrogateescape"}
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), **text)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), **text)
    text["errors"] = "backslashreplace"
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), **text, write_through=True)
    builtins.exit = builtins.quit = sys.exit  # what `site` would have given
    sys.argv = ["program.py"]
    main = types.ModuleType("__main__")
    main.__dict__["__file__"] = "program.py"
    sys.modules["__main__"] = main
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
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # waits for the program's threads, as the interpreter would
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = status or 1
    return status & 0xFF


def _answer(names: dict, test: dict) -> object:
    """The value that the test asks for, from the program's own names."""
    if "evaluate" in test:
        scope = dict(names)
        if test["setup"]:
            exec(compile(test["setup"], "tests.py", "exec"), scope)
        if test["evaluate"] is None:  # assertions that could not be split
            return True
        return eval(compile(test["evaluate"], "tests.py", "eval"), scope)
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
    kinds: tuple = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return [kind.__name__, [_encoded(item, inner) for item in kind.__iter__(value)]]
    if isinstance(value, types.GeneratorType | map | filter | zip | range):
        return ["other", "iterator"]
    item = getattr(value, "item", None) or getattr(value, "tolist", None)
    if type(value).__module__ == "numpy" and item is not None:
        plain = value.tolist()  # type: ignore[attr-defined]
        return _encoded(plain, inner)
    return ["other", type(value).__name__]


if __name__ == "__main__":
    main()
