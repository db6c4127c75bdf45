"""`python -m cluster submit RECIPE`: `ray job submit`, and what often fails, looked at first."""

import logging
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import load

LARGEST = 100 << 20
"""Bytes of a working folder that Ray takes"""
ADDRESS = "http://127.0.0.1:8265"
TOKEN_FILE = "~/.ray/auth_token"
NEVER = (".git", ".venv", "venv", "__pycache__")
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Upload:
    """What of the working folder goes to the cluster."""

    files: int
    size: int
    largest: list[tuple[int, str]]


def submit(
    recipes: Sequence[str],
    overrides: Sequence[str],
    *,
    address: str = "",
    wait: bool = True,
    folder: Path | None = None,
) -> int:
    """Ray's exit code, which with `wait` is the job's. Raises ValueError for what would not work on
    the cluster, RuntimeError when there is none at `address`."""
    folder = folder or Path.cwd()
    loaded = load(recipes, overrides)
    loaded.config.check()
    for recipe in recipes:
        if not Path(recipe).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{recipe} is outside of {folder}, which is what goes to the cluster: copy it here"
            )
    upload = look_at(folder)
    print(f"{upload.files} files, {upload.size / 2**20:.1f} MiB, go to the cluster")
    if upload.size > LARGEST:
        most = ", ".join(f"{path} ({size / 2**20:.0f} MiB)" for size, path in upload.largest)
        raise ValueError(
            f"{folder} has {upload.size / 2**20:.0f} MiB, and Ray takes {LARGEST >> 20}: name in "
            f".rayignore what the job does not need, one pattern a line; the largest are {most}"
        )
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", ADDRESS)
    is_there(address)
    names = [os.path.relpath(recipe, folder) for recipe in recipes]
    identity = f"{loaded.config.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    command = ["ray", "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--submission-id", identity, *([] if wait else ["--no-wait"])]
    command += ["--", "python", "-m", "cluster", "train", *names, *overrides]
    print(shlex.join(command), flush=True)
    command[0] = str(Path(sys.executable).with_name("ray"))
    return subprocess.run(command, cwd=folder).returncode


def look_at(folder: Path) -> Upload:
    """All but what .gitignore and .rayignore of the folder name, as Ray reads them, and what it
    never takes."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    takes_all = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"
    excludes = get_excludes_from_ignore_files(
        folder, include_gitignore=not takes_all, logger=logging.getLogger(__name__)
    )

    def goes(path: Path) -> bool:
        return path.name not in NEVER and not any(excluded(path) for excluded in excludes)

    found: list[tuple[int, str]] = []
    for root, folders, files in os.walk(folder.resolve()):
        here = Path(root)
        folders[:] = [name for name in folders if goes(here / name)]
        kept = [here / name for name in files if goes(here / name)]
        found += [(path.lstat().st_size, os.path.relpath(path, folder)) for path in kept]
    return Upload(len(found), sum(size for size, _ in found), sorted(found, reverse=True)[:3])


def token() -> str:
    """As Ray finds it; empty where there is none."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE)).expanduser()
    found = os.environ.get("RAY_AUTH_TOKEN", "")
    return found or (file.read_text().strip() if file.is_file() else "")


def is_there(address: str) -> None:
    """Raises RuntimeError when no Ray answers, ValueError when it wants another token."""
    request, has = urllib.request.Request(f"{address.rstrip('/')}/api/version"), token()
    if has:
        request.add_header("Authorization", f"Bearer {has}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ValueError(
                f"{address} wants a token, and {'has another' if has else 'there is none'}: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as its nodes have it"
            ) from error
        raise RuntimeError(f"{address} answers with {error.code} {error.reason}") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise RuntimeError(
            f"no Ray dashboard at {address} ({why}): start one with `ray start --head`, or name it "
            "with --address http://HOST:8265"
        ) from error
