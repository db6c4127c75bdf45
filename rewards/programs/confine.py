"""What a candidate process gives up before the model's code runs in it: uid, resources, files,
system calls. Standard library only: it is imported inside the sandbox.

Landlock: https://docs.kernel.org/userspace-api/landlock.html; seccomp: seccomp(2). The order is
uid, limits, Landlock, seccomp: each later one would forbid an earlier one.
"""

import contextlib
import ctypes
import errno
import os
import resource
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SIGKILL = 9

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
"""The numbers are the same on every architecture, as of all system calls from 403 on."""
SCOPES_SINCE = 6
"""ABI 6 (Linux 6.12) keeps signals within; without it, others of the same uid could be reached."""
LANDLOCK_MINIMUM = 3
"""Before ABI 3 (Linux 6.2), `truncate` of a foreign file is not restricted."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
READ = READ_FILE | READ_DIR
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of access rights on files that each ABI knows; later ones know no more."""

# -- seccomp --------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HIGHEST = 462
"""The highest system call that the lists below were made from; any above does not exist."""

# Name: (x86-64, arm64); None where the architecture has none.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # New processes and programs. (`clone` and `clone3` have rules of their own: threads.)
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # The network. `socketpair` stays: event loops need it, and it reaches nobody.
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setns": (308, 268),
    "unshare": (272, 97),
    # Mounts and roots.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # What lives on after the process, or outside its limits.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mknod": (133, None),
    "mknodat": (259, 33), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "fallocate": (285, 47), "truncate": (76, 45), "sync": (162, 81), "syncfs": (306, 267),
    "inotify_init": (253, None), "inotify_init1": (294, 26),
    # Leaving the parent's sight, and others' schedules.
    "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
    # Attributes of files, which Landlock does not cover.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    # The kernel's deeper rooms.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "vmsplice": (278, 75), "personality": (135, 92), "syslog": (103, 116),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "fanotify_init": (300, 262),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "nfsservctl": (180, 42), "lookup_dcookie": (212, 18),
}  # fmt: skip
CLONE, CLONE3 = (56, 220), (435, 435)
FTRUNCATE = (77, 46)
CLONE_THREAD = 0x00010000
OWN_PID_ONLY = ((62, 129), (234, 131), (302, 261), (203, 122))
"""kill, tgkill, prlimit64, sched_setaffinity: what takes a pid as its first argument."""
FORBIDDEN_ARGUMENTS = (
    ((72, 25), 1, (8, 10, 15)),  # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX send signals by a detour
    ((16, 29), 1, (0x8901, 0x8902)),  # ioctl: FIOSETOWN, SIOCSPGRP, the same
    ((157, 167), 0, (1, 4)),  # prctl: PR_SET_PDEATHSIG, PR_SET_DUMPABLE
)
"""(numbers, which argument, values that are refused)."""
SOCKETPAIR = (53, 199)
AF_UNIX, SOCK_STREAM = 1, 1

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, GREATER, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, (16, 24)


def seccomp_filter(pid: int, *, may_truncate: bool = True, machine: str = "") -> bytes:
    """The filter of a process that may be one process with threads, signal only itself (`pid`),
    and do nothing with the network, mounts, other processes or the kernel's deeper rooms. Without
    `may_truncate`, files grow by being written to, which is counted.

    Raises RuntimeError on an architecture whose system calls are not listed.
    """
    machine = machine or os.uname().machine
    if machine not in ARCHITECTURES:
        raise RuntimeError(f"no seccomp filter for {machine}, only for {', '.join(ARCHITECTURES)}")
    column = list(ARCHITECTURES).index(machine)
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),  # system calls of another architecture have other numbers
        (LOAD, 0, 0, NUMBER),
        # Newer than this list, or x86-64's 32-bit table (bit 30): not there.
        (GREATER, 0, 1, HIGHEST),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
        (EQUAL, 0, 1, CLONE3[column]),  # its flags are behind a pointer; libc falls back to clone
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]
    refuse, allow = (RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW)
    for numbers in [*DENIED.values(), *([] if may_truncate else [FTRUNCATE])]:
        if numbers[column] is not None:
            code += [(EQUAL, 0, 1, numbers[column] or 0), refuse]

    def rule(number: int, *body: tuple[int, int, int, int]) -> None:
        """What holds for one system call; it ends in a verdict."""
        code.extend([(EQUAL, 0, len(body), number), *body])

    first, second = ((LOAD, 0, 0, at) for at in ARGUMENTS)
    rule(CLONE[column], first, (ANY_BIT, 0, 1, CLONE_THREAD), allow, refuse)
    for numbers in OWN_PID_ONLY:
        rule(numbers[column], first, (EQUAL, 1, 0, 0), (EQUAL, 0, 1, pid), allow, refuse)
    for numbers, which, values in FORBIDDEN_ARGUMENTS:
        tests = [(EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
        rule(numbers[column], (first, second)[which], *tests, allow, refuse)
    # Datagrams would reach any socket file, and abstract ones, through `sendto`.
    kind = (AND, 0, 0, 0xF), (EQUAL, 0, 1, SOCK_STREAM), allow
    rule(SOCKETPAIR[column], first, (EQUAL, 0, 4, AF_UNIX), second, *kind, refuse)
    code.append(allow)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install_seccomp(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    prctl(PR_SET_NO_NEW_PRIVS, 1)
    value = Program(len(program) // 8, program)
    if LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(value), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


# -- Landlock -------------------------------------------------------------------------------------


def landlock_abi() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    return max(LIBC.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), 0)


def landlock(readable: list[str], writable: str) -> int:
    """Rules by which only these folders can be read and only this one written; an open file, for
    `install_landlock`. Made before the change of uid, which may not walk to them. Raises OSError.
    """
    abi = landlock_abi()
    all_rights = (1 << RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=Q", all_rights)
    if abi >= SCOPES_SINCE:  # TCP ports; abstract sockets and signals of others
        attributes += struct.pack("=QQ", 0b11, 0b11)
    ruleset = LIBC.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock ruleset refused")
    for path, rights in [*((p, READ) for p in readable), (writable, all_rights & ~EXECUTE)]:
        if not os.path.exists(path):
            continue
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= READ_FILE
        if path == os.devnull:
            rights |= WRITE_FILE | (TRUNCATE if abi >= LANDLOCK_MINIMUM else 0)
        rule = struct.pack("=Qi", rights, folder)
        if LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), f"Landlock rule refused for {path}")
        os.close(folder)
    return ruleset


def install_landlock(ruleset: int) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock refused")
    os.close(ruleset)


# -- uid, limits ----------------------------------------------------------------------------------


def drop_uid(uid: int) -> None:
    """Become `uid`, which nobody else is; only root can."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def limit(*, seconds: float, memory_mib: int, file_mib: int, threads: int) -> None:
    """Of one process. `RLIMIT_NPROC` counts by uid, so `threads` is 0 (no limit but memory) where
    the uid is not the process's own."""
    seconds = int(seconds) + 1
    for kind, soft in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, file_mib << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        *([(resource.RLIMIT_NPROC, threads)] if threads else []),
    ):
        _, allowed = resource.getrlimit(kind)
        hard = soft + 1 if kind == resource.RLIMIT_CPU else soft
        hard = hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
        resource.setrlimit(kind, (min(soft, hard), hard))


def die_with_parent(parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, SIGKILL)  # after the change of uid, which clears it
    if os.getppid() != parent:
        raise RuntimeError("the parent died first")


def hide(hidden: bool = True) -> None:
    """Nobody of the same uid may trace this process or open its /proc/PID files."""
    prctl(PR_SET_DUMPABLE, int(not hidden))


def written(pid: int) -> int:
    """Bytes that a process has written so far, to files and pipes; 0 when it is gone, or has just
    ended: then the kernel shows it to root only."""
    try:
        with open(f"/proc/{pid}/io") as file:
            return int(file.read().partition("wchar:")[2].split()[0])
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError):
        return 0


def remove(folder: str) -> None:
    """A folder that a candidate filled, whatever it put there."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        return
    import shutil  # here: most programs leave nothing, and they do not wait for these two
    import subprocess

    def unlock(_: object, path: str, __: object) -> None:
        """A folder that its owner may not read."""
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)

    for on_error in (unlock, None):
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=on_error is None, onerror=on_error)
        if not os.path.lexists(folder):
            return
    # Nested deeper than Python's recursion, or a path, goes.
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["rm", "-rf", folder], check=False, timeout=30, stderr=subprocess.DEVNULL)


def prctl(option: int, value: int) -> None:
    if LIBC.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option} refused")
