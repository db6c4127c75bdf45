"""What each node of a Ray cluster gives a run, and whether they hear each other: for `doctor`."""

import logging
import os
import platform
import shutil
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.device import CPU_COLLECTIVES
from cluster.tools.versions import version_of

ANSWER_SECONDS = 60.0
LARGEST_SKEW = 2.0
"""Seconds between two nodes' wall clocks; more make records hard to put in order."""


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    python: str
    versions: dict[str, str]
    shared_memory: int
    """Bytes free in /dev/shm"""
    disk: int
    """Bytes free in the folder; -1 when this node cannot make it"""
    sees: bool
    """The file that the driver wrote there"""
    ahead: float
    """Seconds of its wall clock before the driver's, as far as that can be told"""


def probe(address: str, folder: Path, versions: list[str]) -> tuple[list[Node], float | str]:
    """All nodes of the cluster, and the seconds of an all-reduce over one process on each, or why
    there was none. `folder` is where runs write. Raises RuntimeError when no cluster answers or a
    node cannot be looked at."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise RuntimeError(f"no Ray cluster at {address}: {error}") from error
    marker = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("doctor")
        there = [node for node in ray.nodes() if node["Alive"]]
        began = time.time()
        asked = [_on(node, _look).remote(str(marker), versions) for node in there]
        looks = _answers(asked, there, "looking at")
        ended, found = time.time(), []
        for look in looks:
            clock = look.pop("clock")
            ahead = min(clock - began, 0.0) + max(clock - ended, 0.0)
            found.append(Node(**look, ahead=ahead))
        try:
            return found, _ping(there)
        except (RuntimeError, RayError) as error:
            return found, str(error).strip().splitlines()[-1]
    except (OSError, RayError) as error:
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    finally:
        marker.unlink(missing_ok=True)
        ray.shutdown()


def _answers(refs: list[Any], nodes: list[dict], what: str) -> list[Any]:
    _, waiting = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_SECONDS)
    if waiting:
        late = ", ".join(
            node["NodeManagerAddress"]
            for node, ref in zip(nodes, refs, strict=True)
            if ref in waiting
        )
        raise RuntimeError(f"{what} {late}: no answer within {ANSWER_SECONDS:.0f} s")
    return ray.get(refs)


def _on(node: dict, function: Any) -> Any:
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    root = str(Path(__file__).resolve().parent.parent)
    env = {"env_vars": {"PYTHONPATH": root}}
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=place, runtime_env=env)


def _look(marker: str, versions: list[str]) -> dict[str, Any]:
    folder = Path(marker).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder).free
    except OSError:
        disk = -1
    shared = Path("/dev/shm")
    return {
        "name": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in versions},
        "shared_memory": shutil.disk_usage(shared).free if shared.is_dir() else 0,
        "disk": disk,
        "sees": Path(marker).is_file(),
        "clock": time.time(),
    }


def _ping(nodes: list[dict]) -> float:
    """One process on each node, and a sum over all of them on their CPUs: whether the ranks of a
    learner could find each other. Their GPUs' own network would need GPUs that are free."""
    [address, port] = _answers([_on(nodes[0], _free_port).remote()], nodes[:1], "a port of")[0]
    asked = [
        _on(node, _sum_over).remote(rank, len(nodes), address, port)
        for rank, node in enumerate(nodes)
    ]
    return max(_answers(asked, nodes, "a sum over all nodes, in which are missing"))


def _free_port() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _sum_over(rank: int, ranks: int, address: str, port: int) -> float:
    import torch
    import torch.distributed

    os.environ[f"{CPU_COLLECTIVES.upper()}_SOCKET_IFNAME"] = interface_of(
        ray.util.get_node_ip_address()
    )
    where = f"tcp://{address}:{port}"
    torch.distributed.init_process_group(CPU_COLLECTIVES, where, rank=rank, world_size=ranks)
    try:
        value = torch.ones(1)
        torch.distributed.all_reduce(value)
        started = time.monotonic()
        torch.distributed.all_reduce(value)
        return time.monotonic() - started
    finally:
        torch.distributed.destroy_process_group()


def interface_of(address: str) -> str:
    """The network interface that has this address; loopback when none says so."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return "lo"
