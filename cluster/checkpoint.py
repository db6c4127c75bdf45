"""Checkpoints: whole or not there.

A checkpoint is written under a temporary name; its manifest (sizes and digests of every file) comes
last; then everything is flushed and the folder is renamed. Resuming takes the newest one whose
manifest holds, never a pointer file's word.

    checkpoints/000050/
        manifest.json   step, cursor of the prompts, fingerprint of the data, digests
        learner/        DeepSpeed's shards: weights, optimizer state (every rank its own)
        model/          the policy as a Hugging Face checkpoint
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.files import free_name
from cluster.window import WindowState
from rewards import faults

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    step: int
    window: WindowState
    state: dict[str, Any]
    """What the run wants to remember besides: best evaluation, seconds spent."""

    @property
    def model(self) -> Path:
        return self.folder / "model"


def temporary(root: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into."""
    folder = root / f"tmp-{step:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, *, step: int, window: WindowState, state: dict[str, Any]) -> Checkpoint:
    """Seal what was written into a temporary folder."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "step": step,
        "window": asdict(window),
        "state": state,
        "files": files,
    }
    path = folder / MANIFEST
    path.write_text(json.dumps({"sum": _sum(manifest), **manifest}, indent=1))
    for file in [*(folder / name for name in files), path, folder]:
        _flush(file)
    faults.point("checkpoint.before_rename")
    final = folder.with_name(f"{step:06d}")
    if final.exists():  # left by a run that died after this very step
        shutil.rmtree(final)
    os.replace(folder, final)
    _flush(final.parent)
    return Checkpoint(final, step, window, state)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, and one line for each that had to be passed over."""
    passed: list[str] = []
    for folder in sorted(root.glob("[0-9]*"), reverse=True):
        try:
            return read(folder), passed
        except ValueError as error:
            passed.append(str(error))
    return None, passed


def newest_state(root: Path) -> dict[str, Any]:
    """What the newest checkpoint's manifest remembers, unverified; empty when there is none."""
    for folder in sorted(root.glob("[0-9]*"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return json.loads((folder / MANIFEST).read_text())["state"]
    return {}


def read(folder: Path) -> Checkpoint:
    """Raises ValueError when the manifest or any file it names is missing or changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a checkpoint: it has no {MANIFEST}") from error
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{folder}/{MANIFEST} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("sum", "") != _sum(manifest):
        raise ValueError(
            f"{folder}/{MANIFEST} does not match its checksum: it is damaged, or an earlier "
            "version of this program wrote it"
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != expected["bytes"] or _digest(path) != expected["sha256"]:
            raise ValueError(
                f"checkpoint {folder} is damaged: {name} has changed since it was saved"
            )
    window = WindowState.of(manifest["window"])
    return Checkpoint(folder, manifest["step"], window, manifest["state"])


def prune(root: Path, *, keep: int, keep_every: int, scores: dict[int, float]) -> None:
    """Delete all but the `keep` newest, those of steps that `keep_every` divides, and the one with
    the best score."""
    folders = sorted(root.glob("[0-9]*"))
    scored = [folder for folder in folders if int(folder.name) in scores]
    best = max(scored, key=lambda folder: scores[int(folder.name)], default=None)
    for folder in folders[:-keep]:
        spared = keep_every and int(folder.name) % keep_every == 0
        if folder != best and not spared:
            shutil.rmtree(folder)


def put_aside(root: Path, step: int) -> None:
    """Those of later steps than a run goes on from: damaged, or of what is trained anew."""
    for folder in root.glob("[0-9]*"):
        if int(folder.name) > step:
            folder.rename(free_name(folder.with_name(f"superseded-{folder.name}")))


def room(root: Path) -> tuple[int, int]:
    """(bytes that a checkpoint needs, by the largest there is; bytes free). Asked before any rank
    begins to write: a rank that fails halfway leaves the others in a collective."""
    root.mkdir(parents=True, exist_ok=True)
    sizes = [
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in root.glob("[0-9]*")
    ]
    return max(sizes, default=0), shutil.disk_usage(root).free


def weights_digest(checkpoint: Checkpoint) -> str:
    """One digest over the exported weights; equal for bitwise equal weights."""
    files = sorted(checkpoint.model.glob("*.safetensors"))
    return hashlib.sha256("".join(_digest(file) for file in files).encode()).hexdigest()


def _sum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def model_folder(path: Path) -> Path:
    """The Hugging Face checkpoint that a path means: a run's checkpoint (verified) or a model
    folder itself. Raises ValueError when it is neither."""
    if (path / MANIFEST).exists():
        return read(path).model
    if (path / "config.json").exists() and list(path.glob("*.safetensors")):
        return path
    raise ValueError(f"{path} is neither a checkpoint (no {MANIFEST}) nor a model folder")


def export_model(source: Path, target: Path, *, dtype: str, shard_size: str) -> None:
    """Write the policy of a checkpoint as sharded safetensors, config, generation config, tokenizer
    and chat template. Raises ValueError when `target` is in use or `dtype` is unknown."""
    import torch

    from learner.model import export, load_model

    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty")
    model = model_folder(source)
    names = {"": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in names:
        raise ValueError(f"--dtype {dtype}: choose float32 or bfloat16")
    policy = load_model(str(model), dtype=names[dtype] or "auto")
    export(dict(policy.named_parameters()), str(model), target, shard_size=shard_size)
