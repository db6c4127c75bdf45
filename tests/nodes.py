"""A Ray cluster of several nodes on one machine: a network namespace each, and between them a
switch that loses and delays frames as a test wants.

    PYTHONPATH=. python tests/nodes.py      # three nodes until Enter, for a look around

Needs the right to make namespaces. The nodes share files, processes and memory; only what they say
to each other goes through the switch.
"""

import fcntl
import heapq
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from runs import ROOT, environment, wait_until

RAY = str(Path(sys.executable).with_name("ray"))
FRAME = 9000
"""Bytes of the largest packet: the switch is slow per frame, not per byte."""
PORT = 6379


def possible() -> str:
    """Why there can be no nodes here; empty where there can."""
    if os.geteuid() or not shutil.which("ip"):
        return "needs root and `ip` for network namespaces"
    probe = f"cohort-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class Switch:
    """Forwards frames between the host ends of the nodes' cables, in a thread."""

    def __init__(self, ports: list[str]) -> None:
        self.lost: set[int] = set()
        """Nodes whose frames go nowhere; what others send them arrives."""
        self.delay = 0.0
        """Seconds that every frame is under way."""
        self._sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in ports]
        for each, port in zip(self._sockets, ports, strict=True):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 20)
            each.bind((port, 3))  # 3: frames of every protocol
            each.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    def _work(self) -> None:
        home: dict[bytes, int] = {}  # by the address of a node's card, its port
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._stop.is_set():
            patience = max(waiting[0][0] - time.monotonic(), 0) if waiting else 0.2
            ready, _, _ = select.select(self._sockets, [], [], min(patience, 0.2))
            for receiver in ready:
                port = self._sockets.index(receiver)
                for frame in _frames(receiver):
                    home[frame[6:12]] = port
                    if port not in self.lost:
                        number += 1
                        due = time.monotonic() + self.delay
                        heapq.heappush(waiting, (due, number, port, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, port, frame = heapq.heappop(waiting)
                known = home.get(frame[:6])
                for other, sender in enumerate(self._sockets):
                    if other != port and known in (None, other):
                        try:
                            sender.send(frame)
                        except OSError:  # the cable is cut, or full: frames may be lost
                            continue


def _frames(receiver: socket.socket) -> list[bytes]:
    frames = []
    for _ in range(500):
        try:
            frame, address = receiver.recvfrom(FRAME + 100)
        except OSError:
            break
        if address[2] != socket.PACKET_OUTGOING:  # what the switch itself sent
            frames.append(frame)
    return frames


def _plain_frames(card: str) -> None:
    """Let no card leave sums or cutting up to others: nobody behind the switch would do it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in (0x17, 0x1F, 0x24, 0x2C):  # tx sums, tso, gso, gro (linux/ethtool.h)
            value = bytearray(struct.pack("II", command, 0))
            address = struct.pack("16sP", card.encode(), _address_of(value))
            fcntl.ioctl(any_socket, 0x8946, address)


def _address_of(buffer: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Nodes:
    """Namespaces `cohort-<tag>-0`, `-1`, ... with addresses 10.77.0.1, .2, ... and Ray in them.

    With `own_folders` each sees a folder of its own as `folder`, as on machines of their own: Ray's
    nodes unpack a job's files there, and delete them for each other where they share it.
    """

    def __init__(self, count: int, *, own_folders: bool = False) -> None:
        self._own_folders = own_folders
        self.env = environment(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(16),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        )
        self._tag = secrets.token_hex(3)  # the kernel takes its time to forget names
        self.names = [f"cohort-{self._tag}-{index}" for index in range(count)]
        # Ray's sockets allow paths of 107 characters only, so not below pytest's folder.
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-"))
        self._rays: dict[int, list[subprocess.Popen]] = {}
        cables = []
        for index, name in enumerate(self.names):
            outer, inner = f"co{self._tag}-{index}", self._card(index)
            hosts = Path("/etc/netns") / name / "hosts"  # of this namespace alone
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{self.address(index)} {socket.gethostname()}\n")
            _ip("netns", "add", name)
            _ip("link", "add", outer, "mtu", str(FRAME), "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "mtu", str(FRAME), "netns", name)
            _ip("-n", name, "addr", "add", f"{self.address(index)}/24", "dev", inner)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", inner, "up")
            _ip("link", "set", outer, "up")
            Path(f"/proc/sys/net/ipv6/conf/{outer}/disable_ipv6").write_text("1")
            self._inside(index, f"import nodes; nodes._plain_frames({inner!r})")
            cables.append(outer)
        self.switch = Switch(cables)

    def _card(self, index: int) -> str:
        return f"ci{self._tag}-{index}"

    @staticmethod
    def address(index: int) -> str:
        return f"10.77.0.{index + 1}"

    def run(self, index: int, *command: str, **options) -> subprocess.Popen:
        """A process on a node."""
        inside = ["ip", "netns", "exec", self.names[index]]
        if self._own_folders:  # `ip netns exec` has mounts of its own
            own = self.folder.with_name(f"{self.folder.name}-{index}")
            own.mkdir(exist_ok=True)
            inside += ["sh", "-c", f'mount --bind {own} {self.folder} && exec "$@"', "sh"]
        inside += command
        return subprocess.Popen(inside, cwd=ROOT, start_new_session=True, **options)

    def _inside(self, index: int, code: str) -> None:
        env = {**self.env, "PYTHONPATH": str(ROOT / "tests")}
        process = self.run(index, sys.executable, "-c", code, env=env)
        if process.wait(30):
            raise RuntimeError(f"node {index}: {code} failed")

    def start_ray(self, index: int, cpus: int) -> None:
        """The head on node 0, a worker elsewhere."""
        command = [RAY, "start", "--block", "--num-cpus", str(cpus), "--disable-usage-stats"]
        command += ["--node-ip-address", self.address(index), "--object-store-memory=150000000"]
        if index == 0:
            command += ["--head", f"--port={PORT}", "--include-dashboard=false"]
            command += [f"--temp-dir={self.folder}"]
        else:
            command += [f"--address={self.address(0)}:{PORT}"]
        with open(self.folder / f"ray-{index}.log", "a") as log:
            process = self.run(index, *command, env=self.env, stdout=log, stderr=log)
        self.adopt(index, process)

    def adopt(self, index: int, process: subprocess.Popen) -> None:
        """One that ends with the node."""
        self._rays.setdefault(index, []).append(process)

    def processes(self, index: int) -> list[int]:
        """Of everything that runs on a node."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.names[index]], capture_output=True, text=True
        )
        return [int(pid) for pid in done.stdout.split()]

    def where(self, pid: int) -> int:
        """The node of a process."""
        return next(index for index in range(len(self.names)) if pid in self.processes(index))

    def cut(self, index: int) -> None:
        """Pull the cable out."""
        _ip("-n", self.names[index], "link", "set", self._card(index), "down")

    def heal(self, index: int) -> None:
        _ip("-n", self.names[index], "link", "set", self._card(index), "up")

    def end_ray(self, index: int) -> None:
        """Everything on a node, at once."""
        for pid in self.processes(index):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        for process in self._rays.pop(index, []):
            process.wait(30)

    def close(self) -> None:
        for index, name in enumerate(self.names):
            self.end_ray(index)
            wait_until(lambda index=index: not self.processes(index), 15, "an empty node")
            _ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns") / name)
        self.switch.close()
        for folder in self.folder.parent.glob(f"{self.folder.name}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


if __name__ == "__main__":
    if why := possible():
        sys.exit(why)
    nodes = Nodes(3)
    try:
        for node, cpus in enumerate((0, 2, 2)):
            nodes.start_ray(node, cpus)
        input(f"a head at {nodes.address(0)}:{PORT} and two workers, until Enter ")
    finally:
        nodes.close()
