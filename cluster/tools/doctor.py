"""`python -m cluster doctor [RECIPE]`: what this machine and its cluster give a run, and what they
lack."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster import scoring
from cluster.config import RunConfig, load
from cluster.device import CPU_COLLECTIVES, accelerators
from cluster.tools import dataset
from cluster.tools.submit import TOKEN_FILE, token
from cluster.tools.versions import TESTED, version_of
from rewards.programs.sandbox import TIERS, best_tier, bubblewrap, why_not

WRONG = "WRONG: "
"""Begins what a run would fail of"""


def examine(recipes: Sequence[str], overrides: Sequence[str]) -> int:
    """Prints the findings; 1 when a run would fail of one of them. Raises ValueError for a recipe
    that is wrong."""
    config = load(recipes, overrides).config if recipes else RunConfig()
    wrong = 0

    def tell(name: str, findings: Iterator[str]) -> None:
        nonlocal wrong
        for finding in findings:
            print(f"{name:<15}{finding}", flush=True)
            wrong += finding.startswith(WRONG)

    python = f"{platform.python_version()} on {platform.platform()}, {sys.executable}"
    tell("python", iter([python]))
    for package, finding in versions():
        tell(package, iter([finding]))
    tell("devices", devices())
    tell("disk", disk(config))
    tell("ray", cluster(config))
    for name, finding in sandbox():
        tell(name, iter([finding]))
    if recipes:
        for note in scoring.check(config.rewards):
            tell("", iter([note]))
        tell("memory", memory(config))
        tell("verifiers", iter([f"{', '.join(config.rewards.verifiers)}: loaded"]))
        tell("data", data(config, recipes, overrides))
    print(f"{wrong} things would make a run fail" if wrong else "nothing that a run would fail of")
    return 1 if wrong else 0


def versions() -> list[tuple[str, str]]:
    """Found, beside what was tested."""
    lines = []
    for name, tested in TESTED.items():
        found = version_of(name)
        remark = "" if found.startswith(tested) else f"; tested with {tested}"
        lines.append((name, f"{found or WRONG + 'not installed'}{remark}"))
    return lines


def devices() -> Iterator[str]:
    yield f"{os.cpu_count()} CPUs, {_size(_installed())} memory"
    gpus = accelerators()
    for name, has in gpus:
        yield f"{name}, {_size(has)}"
    if not gpus:
        yield "no GPU: runs use the CPU"
    shared = Path("/dev/shm")
    yield (
        f"/dev/shm has {_size(shutil.disk_usage(shared).free)} free"
        if shared.is_dir()
        else (WRONG + "there is no /dev/shm, in which weights travel and Ray keeps objects")
    )


def disk(config: RunConfig) -> Iterator[str]:
    folder = Path(config.output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield f"{WRONG}{there} cannot be written: set output_dir"
        return
    yield f"{_size(shutil.disk_usage(there).free)} free for {folder}"


def cluster(config: RunConfig) -> Iterator[str]:
    """Whether Ray answers, with which token; of a cluster, every node."""
    from cluster.session import address_of

    address = address_of(config)
    if address == "local":
        yield "a run starts its own on this machine, with a token of its own"
        return
    has = bool(token())
    mode = os.environ.get("RAY_AUTH_MODE") or ("token" if has else "disabled")
    if mode != "token":
        yield "RAY_AUTH_MODE is not token: whoever reaches the cluster's ports can run code there"
    elif not has:
        yield (
            f"{WRONG}RAY_AUTH_MODE=token, and there is none in RAY_AUTH_TOKEN, in the file of "
            f"RAY_AUTH_TOKEN_PATH or in {TOKEN_FILE}"
        )
        return
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            yield f"{WRONG}nobody answers at {address}: {error.strerror or error}"
            return
    from cluster.tools.probe import LARGEST_SKEW, probe

    try:
        nodes, seconds = probe(address, Path(config.output_dir).absolute(), list(TESTED))
    except RuntimeError as error:
        yield f"{WRONG}{str(error).splitlines()[0]}"
        return
    ours = {name: version_of(name) for name in TESTED}
    for node in nodes:
        yield f"node {node.name}: /dev/shm {_size(node.shared_memory)}, disk {_size(node.disk)}"
        if node.disk < 0 or not node.sees:
            yield (
                f"{WRONG}node {node.name} does not see {Path(config.output_dir).absolute()}: "
                "checkpoints need a folder that all nodes share"
            )
        differ = [name for name in ours if node.versions[name] != ours[name]]
        for name in differ:
            yield (
                f"{WRONG}node {node.name} has {name} {node.versions[name] or 'not'}, here it is "
                f"{ours[name]}"
            )
        if node.python.rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
            yield f"{WRONG}node {node.name} has Python {node.python}"
        if abs(node.ahead) > LARGEST_SKEW:
            yield f"the clock of {node.name} is {node.ahead:+.0f} s off"
    if isinstance(seconds, str):
        yield f"{WRONG}no sum over {len(nodes)} nodes ({CPU_COLLECTIVES}): {seconds}"
    else:
        yield f"a sum over {len(nodes)} nodes takes {seconds * 1e3:.1f} ms ({CPU_COLLECTIVES})"


def sandbox() -> list[tuple[str, str]]:
    """Which tiers there are, why not the others, and what holds in the one that is used."""
    lines = [("bwrap", bubblewrap() or "not found")]
    for tier in TIERS[:-1]:
        reason = why_not(tier)
        lines.append(("sandbox", f"{tier}: {f'no ({reason})' if reason else 'yes'}"))
    try:
        lines.append(("programs", f"run in the {best_tier()} tier"))
    except RuntimeError as error:
        lines.append(("programs", f"refused: {error}"))
    return lines


def memory(config: RunConfig) -> Iterator[str]:
    """What the recipe needs, by the planner's formulas."""
    from cluster.planner.plan import describe, learner_bytes, sampler_bytes, workload

    if config.prepare and not config.model.path:
        yield f"not known before {config.prepare} has made the model"
        return
    model = describe(config.model.path).sizes
    load, _ = workload(config, like="", mean_length=0.0)
    learner, sampler = learner_bytes(config, model), sampler_bytes(config, model, load)
    ranks, replicas = config.learner.ranks, config.sampler.replicas
    yield f"{ranks} x {_size(learner)} for the learner, {replicas} x {_size(sampler)} for samplers"
    for _, has in accelerators()[:1]:
        if max(learner, sampler) > has:
            yield (
                f"{WRONG}a GPU here has {_size(has)}: more learner.ranks, learner.zero.stage=3, a "
                "smaller learner.micro_batch_tokens or sampler.max_running need less of each"
            )
        return
    from cluster.session import address_of

    if address_of(config) != "local":  # its machines have it, not this one
        return
    has, needed = _installed(), ranks * learner + replicas * sampler
    if needed > has:
        yield f"{WRONG}that is {_size(needed)}, and this machine has {_size(has)}"


def data(config: RunConfig, recipes: Sequence[str], overrides: Sequence[str]) -> Iterator[str]:
    """Tokenizer, template, EOS and verifiers over the recipe's own rows; `data check` prints."""
    file = config.prompts.dataset
    if config.prepare and not file:
        yield f"not known before {config.prepare} has made them"
    elif Path(file).exists():
        count = dataset.check(Path(file), recipes, overrides)
        yield f"{count} warnings" if count else "nothing to warn of"
    else:
        yield f"{file} is on the hub: `python -m cluster data check` looks at files"


def _installed() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: float) -> str:
    if count < 0:
        return "none"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
