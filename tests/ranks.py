"""Learner ranks as plain processes, without Ray: what tests of the learner are built on."""

import json
import multiprocessing
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from learner.config import LearnerConfig, LoraConfig, ModelConfig
from rollout.schema import read_table, write_table

HEAVY = [
    "deepspeed.runtime.engine",
    "torch._inductor.compile_fx",
    "transformers.masking_utils",
    "transformers.models.auto.auto_factory",
    "transformers.models.qwen2.modeling_qwen2",
]
"""Imported once, in the process that all ranks are forked from: it is most of what a rank does."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(
    work: Callable[..., Any],
    folder: Path,
    *args: Any,
    ranks: int = 1,
    config: dict[str, Any] | None = None,
    model: Path,
    steps: int = 100,
    temperature: float = 1.0,
    lora: int = 0,
    dtype: str = "float32",
) -> list[Any]:
    """`work(learner, *args)` on every rank, in processes of their own; the results by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    port = free_port()
    settings = {"ranks": ranks, **(config or {})}
    processes = []
    for rank in range(ranks):
        out = folder / f"result-{rank}.json"
        out.unlink(missing_ok=True)
        learner = (settings, str(model), lora, steps, temperature, dtype)
        target = (work, args, rank, ranks, port, learner, str(out))
        processes.append(context.Process(target=_rank, args=target))
        processes[-1].start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
    results = []
    for rank in range(ranks):
        out = folder / f"result-{rank}.json"
        result = json.loads(out.read_text()) if out.exists() else {"error": "the process died"}
        if "error" in result:
            raise RuntimeError(f"rank {rank}: {result['error']}")
        results.append(result["value"])
    return results


def _rank(work, args, rank, ranks, port, learner, out) -> None:
    settings, model, lora, steps, temperature, dtype = learner
    import torch

    from learner.engine import Placement
    from learner.learner import Learner

    torch.set_num_threads(1)
    placement = Placement(
        rank=rank,
        ranks=ranks,
        address="127.0.0.1",
        port=port,
        collectives="gloo",
        dtype=getattr(torch, dtype),
        timeout_seconds=120.0,
    )
    try:
        config = LearnerConfig.model_validate(settings)
        built = Learner(
            config,
            ModelConfig(path=model, lora=LoraConfig(rank=lora)),
            placement,
            steps=steps,
            temperature=temperature,
            max_tokens=32,
        )
        value = work(built, *args)
        built.close()
        result = {"value": value}
    except Exception:
        result = {"error": traceback.format_exc()}
    Path(out).write_text(json.dumps(result))


def save_tables(tables: list[pa.Table], folder: Path) -> list[str]:
    paths = []
    for number, table in enumerate(tables):
        path = folder / f"{number:06d}.arrow"
        write_table(table, path)
        paths.append(str(path))
    return paths


# -- what ranks do -------------------------------------------------------------------------------


def train(learner, paths: list[str]) -> list[dict[str, float]]:
    """One update per table; the metrics of each."""
    return [learner.update(read_table(Path(path))).metrics for path in paths]


def train_and_digest(learner, paths: list[str]) -> tuple[list[float], str]:
    """The loss curve, and a digest of the final weights."""
    losses = [metrics["learner/loss"] for metrics in train(learner, paths)]
    return losses, digest(learner)


def digest(learner) -> str:
    import hashlib

    total = hashlib.sha256()
    for name, tensor in learner._source.full_state(keep=True).items():
        total.update(name.encode())
        total.update(tensor.float().numpy().tobytes())
    return total.hexdigest()
