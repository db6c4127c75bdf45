"""A real vLLM sampler in a process of its own: it patches torch in the process it lives in."""

import json
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
MAX_LEN = 200


def with_sampler(
    work: Callable[..., Any],
    folder: Path,
    model: Path,
    *args: Any,
    own_core: bool = False,
    backend: str = "shm",
    options: tuple[str, ...] = (),
) -> Any:
    """`work(sampler, *args)` in a new process; its result (JSON).

    With `own_core`, the engine's core is a process of its own, as on GPUs.
    """
    out = folder / "engine-result.json"
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in ENV}
    os.environ.update(ENV | {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_core))})
    try:
        process = context.Process(
            target=_run, args=(work, str(model), args, str(out), backend, options)
        )
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    process.join(300)
    if process.is_alive():
        process.kill()
        raise RuntimeError("the sampler process hangs")
    if not out.exists():
        raise RuntimeError(f"the sampler process died with exit code {process.exitcode}")
    result = json.loads(out.read_text())
    if "error" in result:
        raise RuntimeError(result["error"])
    return result["value"]


def _run(work, model: str, args: tuple, out: str, backend: str, options: tuple) -> None:
    from cluster.config import load
    from cluster.device import resolve
    from rollout.sampler import Sampler

    try:
        config = load([], [f"model.path={model}", "sampler.max_running=32", *options]).config
        device = resolve(config, gpus=0)
        arguments = {**device.engine_args, "weight_backend": backend}
        sampler = Sampler(model, config.sampler, arguments, MAX_LEN)
        value = work(sampler, *args)
        sampler.close()
        result = {"value": value}
    except BaseException:
        result = {"error": traceback.format_exc()}
    Path(out).write_text(json.dumps(result))


class LocalClient:
    """The weight sync protocol, straight to a sampler in this process."""

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        self.sampler.update("init", init_info).result(60)

    def stage_weights(self, update_info: dict) -> None:
        self.sampler.stage(update_info).result(60)

    def expect_weights(self, info: dict) -> None:
        self.sampler.update("expect", info).result(60)

    def start_weight_update(self) -> None:
        self.sampler.update("start", {}).result(60)

    def update_weights(self, update_info: dict) -> None:
        self.sampler.update("update", update_info).result(60)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.acknowledged = self.sampler.finish_update(int(weight_version or 0)).result(60)
