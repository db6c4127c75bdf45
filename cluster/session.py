"""Ray: joined, or started for a run and ended with it."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from cluster import reaper
from cluster.config import RunConfig
from cluster.errors import Stopped
from cluster.progress import Progress
from cluster.signals import signals_wait
from cluster.sweep import forget_session, remember_session
from rollout.leftovers import remove_weights


@contextlib.contextmanager
def ray_session(config: RunConfig, progress: Progress) -> Iterator[None]:
    """Ray, joined or started here; what is started here ends here."""
    if ray.is_initialized():
        yield
        return
    address = address_of(config)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        progress.line("starting Ray on this machine")
        # One victim at a time where memory runs out, the youngest; and time for its children to go.
        os.environ.setdefault("RAY_worker_killing_policy_by_group", "true")
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "1000")
        options |= {
            "include_dashboard": False,
            "num_cpus": max(os.cpu_count() or 1, 2),  # the demo runs on one core, too: slower
            "object_store_memory": 512 << 20,
        }
    else:
        progress.line(f"joining the Ray cluster at {address}")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    failed = False
    watching = reaper.start(config.folder) if address == "local" else None
    # Asked in the main thread, Ray takes SIGTERM for itself, and a signal that comes while it
    # starts would leave half of it behind. Its processes end with the thread that asked.
    keeper = ThreadPoolExecutor(1, "ray")
    try:
        with signals_wait():
            keeper.submit(_join_ray, config, address, options).result()
        failed = True
        yield
        failed = False
    except (Stopped, ValueError):
        failed = False
        raise
    finally:
        with signals_wait():
            ray.shutdown()
            keeper.shutdown()
            if watching is not None:
                reaper.stop(watching)
            remove_weights(Path(config.cluster.weight_directory))
            forget_session(config.folder, keep_logs=failed)


def _join_ray(config: RunConfig, address: str, options: dict[str, Any]) -> None:
    # What Ray starts here carries the run's marks, its own helpers as well as our actors.
    marks = {}
    if address == "local":
        remember_session(config.folder)
        marks = reaper.marks_of(config.folder, reaper.identity())
    os.environ.update(marks)
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise RuntimeError(f"no Ray cluster at {address}: {error}") from error
    finally:
        for name in marks:
            del os.environ[name]
    if address == "local":
        token = Path.home() / ".ray" / "auth_token"  # Ray makes it for all to read
        with contextlib.suppress(OSError):
            token.chmod(0o600)


def address_of(config: RunConfig) -> str:
    address = config.cluster.address
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address
