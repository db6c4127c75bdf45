"""From a config to a finished run: inputs, run folder, Ray, the loop, the result.

Whatever can be wrong with what the user gave is found here, before anything heavy starts; what a
recipe's `prepare` makes is checked behind it, and the cluster's size once Ray is there.
"""

import asyncio
import contextlib
import fcntl
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster import checkpoint, loop
from cluster import inputs as inputs_module
from cluster.config import RunConfig, load
from cluster.device import Device, resolve
from cluster.evaluate import evaluate
from cluster.files import free_name, write_json
from cluster.inputs import Inputs
from cluster.ledger import read_ledger
from cluster.placement import Shape
from cluster.progress import Progress
from cluster.result import result_of, show
from cluster.run import Run
from cluster.session import address_of, ray_session
from cluster.signals import guarded, signals_raise, signals_wait
from cluster.stacks import save_stacks
from cluster.sweep import sweep

RANKS = ("learner.ranks", "learner.zero.stage")
"""Deciding options that a run may change, with `checkpoint.reshard`."""

JOB_FOLDER = "runtime_resources"
"""Part of the path of the folder that Ray unpacks a submitted job into, and deletes with it."""


def train(config: RunConfig, *, fresh: bool = False, replay: Path | None = None) -> dict[str, Any]:
    """Run a recipe to its end; what `result.json` holds. Resumes by itself.

    Raises ValueError for bad input, RuntimeError when something of the world failed, Stopped on
    SIGINT and SIGTERM.
    """
    with signals_raise():
        return _train(config, fresh=fresh, replay=replay)


def _train(config: RunConfig, *, fresh: bool, replay: Path | None) -> dict[str, Any]:
    config = _place(config, replay)
    config.check()
    progress = Progress(config.logging.progress)
    if config.prepare:
        with claimed(config, fresh=fresh), ray_session(config, progress):
            config, figures = _prepare(config)
            config.check()
            inputs = inputs_module.read(config)
            _check_same_data(config, inputs)
            return execute(config, inputs, progress, figures)
    inputs = inputs_module.read(config, replay=replay)
    with claimed(config, fresh=fresh):
        _check_same_data(config, inputs)
        with ray_session(config, progress):
            return execute(config, inputs, progress)


def execute(
    config: RunConfig,
    inputs: Inputs,
    progress: Progress,
    figures: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run inside a claimed folder and a Ray session."""
    device = device_of(config)
    check_capacity(config, device, Shape.of(config, learns=True, samples=inputs.needs_samplers))
    _save_config(config)
    for note in inputs.notes:
        progress.line(note)
    started = time.monotonic()
    run = Run(config, inputs, device, progress)
    try:
        asyncio.run(guarded(_body(run)))
        with signals_raise():  # the loop has left others behind
            saved = run.last_checkpoint()
            if saved is not None:
                link_tree(saved.model, run.folder / "model")
            result = result_of(run, figures or {}, seconds=time.monotonic() - started)
    finally:
        with signals_wait():
            run.stop()
    write_json(run.folder / "result.json", result)
    progress.line(show(result))
    if run.metrics.warning:
        progress.line(run.metrics.warning)
    return result


def evaluate_checkpoint(path: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Evaluate a run's checkpoint by the recipe that made it, or any model folder with
    `eval.dataset=...`. Raises ValueError when there is nothing to evaluate on."""
    model = checkpoint.model_folder(path)
    recipe = next((f / "config.json" for f in path.resolve().parents if _is_run(f)), None)
    loaded = load([str(recipe)] if recipe else [], overrides, key="config")
    given = {"model": loaded.config.model.model_copy(update={"path": str(model)})}
    with tempfile.TemporaryDirectory(prefix="cohort-eval-") as folder:
        config = loaded.config.model_copy(update={**given, "output_dir": folder, "name": "eval"})
        config.folder.mkdir()
        if not config.eval.dataset:
            raise ValueError("nothing to evaluate on: set eval.dataset")
        inputs = inputs_module.read(config, held_out_only=True)
        progress = Progress(config.logging.progress)
        with ray_session(config, progress):
            device = device_of(config)
            check_capacity(config, device, Shape.of(config, learns=False, samples=True))
            run = Run(config, inputs, device, progress, learns=False)
            try:
                metrics = asyncio.run(guarded(_evaluation(run)))
            finally:
                run.stop()
    for name, value in sorted(metrics.items()):
        print(f"{name:<32} {value:.4f}")
    return metrics


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "checkpoints").is_dir()


async def _evaluation(run: Run) -> dict[str, float]:
    async with run.progress.shown():
        await run.start()
        run.progress.phase = "evaluating"
        metrics, _ = await evaluate(
            run.config, run.inputs.held_out, generate=run.generate, scoring=run.scoring
        )
        return metrics


async def _body(run: Run) -> None:
    async with run.progress.shown():
        await run.start()
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(run.supervisor.watch())
                await loop.train(run)
                watching.cancel()
        except asyncio.CancelledError:
            await run.save_at_stop()
            raise
        except BaseException:
            await save_stacks(run.folder, (run.samplers, run.learners, run.fleet.scorers))
            raise


# -- the run folder
# ---------------------------------------------------------------------------------


def _place(config: RunConfig, replay: Path | None) -> RunConfig:
    """Where this run writes: outside the folder that a Ray job takes with it, and never into the
    recorded run that is replayed."""
    changes: dict[str, Any] = {}
    output = Path(config.output_dir)
    if not output.is_absolute() and JOB_FOLDER in Path.cwd().parts:
        changes["output_dir"] = str(Path.home() / output)
    if replay is not None:
        changes["name"] = f"{config.name}-replay"
        if config.prepare:  # what the recorded run began with is there already
            changes["prepare"] = ""
            changes["model"] = load([str(replay / "config.json")], key="config").config.model
    return config.model_copy(update=changes)


@contextlib.contextmanager
def claimed(config: RunConfig, *, fresh: bool = False) -> Iterator[None]:
    """The run folder, for this process alone. Raises ValueError when it belongs to another config
    or another process works in it; nothing in it is ever deleted."""
    folder = config.folder
    if fresh and folder.exists():
        with _locked(folder):
            sweep(folder)
            aside = folder.rename(free_name(folder))
        print(f"moved the earlier {folder} to {aside}")
    with _locked(folder):
        left = sweep(folder)  # whoever has the lock has no processes yet
        if left:
            print(f"ended {left} processes that an earlier run in {folder} left behind")
        _check_same_run(config, folder)
        try:
            yield
        finally:
            sweep(folder)  # Ray's own end does not reach those that are frozen


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115  # held until the run ends
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is running in {folder}: wait for it, or set another name"
            ) from None
        yield


def _check_same_run(config: RunConfig, folder: Path) -> None:
    """A folder in which nothing was trained yet may be used by any config."""
    saved = folder / "config.json"
    commits, wrong = read_ledger(folder)
    if wrong and not commits:
        raise ValueError(
            f"{wrong}; an earlier version of this program may have written it: set another name, "
            "or start anew with --fresh (the old folder is moved aside)"
        )
    ours = json.loads(json.dumps(config.deciding()))
    if saved.exists() and (folder / "ledger.jsonl").exists():
        if config.checkpoint.resume == "never":
            raise ValueError(
                f"{folder} is a run already and checkpoint.resume=never: set another name, or "
                "start anew with --fresh (the old folder is moved aside)"
            )
        # An option that came later than their run was at its default in it.
        defaults = json.loads(json.dumps(RunConfig().deciding()))
        since = {key: value for key, value in defaults.items() if key in ours}
        theirs = since | json.loads(saved.read_text())["deciding"]
        differ = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        changed = [
            f"  {key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} here"
            for key in differ
        ]
        if not set(differ) <= set(RANKS):
            raise ValueError(
                f"{folder} is a run of another config; set another name, or start anew with "
                "--fresh (the old folder is moved aside). What differs:\n" + "\n".join(changed)
            )
        if differ and not config.checkpoint.reshard:
            raise ValueError(
                f"{folder} is a run of other ranks. It can go on with these, its numbers equal up "
                "to rounding, if you set checkpoint.reshard=true:\n" + "\n".join(changed)
            )
        if differ:
            print(f"{folder} goes on resharded:\n" + "\n".join(changed))
    else:
        write_json(saved, {"deciding": ours, "config": config.model_dump(mode="json")})


def _save_config(config: RunConfig) -> None:
    """What runs in the end, the work of `prepare` included, for `eval` and `--replay`; and with
    which ranks."""
    path = config.folder / "config.json"
    saved, deciding = json.loads(path.read_text()), config.deciding()
    ranks = {key: deciding[key] for key in RANKS}
    saved["deciding"] |= json.loads(json.dumps(ranks))
    write_json(path, saved | {"config": config.model_dump(mode="json")})


def _check_same_data(config: RunConfig, inputs: Inputs) -> None:
    seen = checkpoint.newest_state(config.folder / "checkpoints").get("inputs")
    if seen is not None and seen != inputs.fingerprint:
        raise ValueError(
            f"the training data of {config.folder} have changed since its last checkpoint: give "
            "the run the data it began with, or start anew with --fresh"
        )


def _prepare(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    module_name, _, function_name = config.prepare.partition(":")
    try:
        prepare = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"prepare={config.prepare!r} is no module:function: {error}") from error
    return prepare(config)


def device_of(config: RunConfig) -> Device:
    """Decided for the Ray cluster that there is; others' may grow by machines."""
    gpus = ray.cluster_resources().get("GPU", 0)
    return resolve(config, gpus=gpus, one_machine=address_of(config) == "local")


def check_capacity(config: RunConfig, device: Device, shape: Shape) -> None:
    wanted, there = shape.devices(config, device), ray.cluster_resources().get(device.resource, 0)
    if wanted > there:
        raise ValueError(
            f"the recipe asks for {shape.describe(config, device)} = {wanted:g} {device.resource}, "
            f"the Ray cluster has {there:g}: lower learner.ranks or sampler.replicas, or add nodes"
        )


def link_tree(source: Path, target: Path) -> None:
    """A copy that shares the files' blocks where the file system can."""
    shutil.rmtree(target, ignore_errors=True)

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)
