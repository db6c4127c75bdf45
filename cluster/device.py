"""CPU versus CUDA: every decision that depends on the device is made in this file.

Everyone below receives values: a dtype, a backend name, a resource dict, environment variables.
"""

from dataclasses import dataclass
from typing import Any, Literal

from cluster.config import RunConfig
from learner.memory import kv_width
from rollout.transfer import Backend

# One thread per process: with two spinning OpenMP threads on contended cores, decoding was 70-100
# times slower. Passive waiting costs nothing with one.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
BLOCK = 32
"""Tokens per block of the CPU engine's cache; its default, 128, never shares a short prompt."""

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    kind: Literal["cpu", "cuda"]
    dtype: str
    collectives: str
    """Backend of the learner's process group."""
    weight_backend: Backend
    canary_bound: float
    """Largest logprob gap between learner and sampler that rounding explains."""
    resource: Literal["CPU", "GPU"]
    """What Ray counts devices in."""
    learner_env: dict[str, str]
    sampler_env: dict[str, str]
    share: float
    """How much of one `resource` a learner rank, or a sampler per device, asks Ray for."""
    scorer_cpus: float
    engine_args: dict[str, Any]
    """vLLM arguments that this device wants."""


CPU_COLLECTIVES = "gloo"


def accelerators() -> list[tuple[str, int]]:
    """Name and bytes of each GPU that this process may use."""
    import torch

    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(gpu.name, gpu.total_memory) for gpu in found]


def resolve(config: RunConfig, *, gpus: float, one_machine: bool = True) -> Device:
    """Decide for a cluster with this many GPUs. Raises ValueError for what cannot be."""
    wanted = config.cluster.device
    if wanted == "cuda" and not gpus:
        raise ValueError(
            "cluster.device=cuda, but the Ray cluster has no GPU: use cluster.device=cpu"
        )
    kind = wanted if wanted != "auto" else ("cuda" if gpus else "cpu")
    device = _cuda(config) if kind == "cuda" else _cpu(config, one_machine)
    backend = device.weight_backend
    if kind == "cpu" and backend in ("nccl", "ipc"):
        raise ValueError(
            f"cluster.weight_backend={backend} needs GPUs; on CPU it is shm, ray or gloo"
        )
    if kind == "cuda" and backend == "gloo":
        raise ValueError("cluster.weight_backend=gloo is for CPUs; with GPUs it is nccl or ipc")
    return device


def _dtype(config: RunConfig, default: str) -> str:
    return default if config.model.dtype == "auto" else config.model.dtype


def _bound(config: RunConfig, dtype: str) -> float:
    return config.cluster.canary_bound or (1e-3 if dtype == "float32" else 0.5)


def _cpu(config: RunConfig, one_machine: bool) -> Device:
    dtype = _dtype(config, "float32")
    backend = config.cluster.weight_backend
    automatic = "shm" if one_machine else "ray"  # machines need not share a folder in memory
    return Device(
        kind="cpu",
        dtype=dtype,
        collectives=CPU_COLLECTIVES,
        weight_backend=automatic if backend == "auto" else backend,
        canary_bound=_bound(config, dtype),
        resource="CPU",
        share=0.5,  # under a synchronous schedule learners and samplers take turns
        scorer_cpus=0,  # on a small machine scoring shares the cores of the others
        learner_env={**THREADS, **QUIET, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        sampler_env={
            **THREADS,
            **QUIET,
            # Compiling one small kernel of the sampler's logprobs takes 3 to 10 s at the first
            # request and makes nothing faster.
            "TORCHDYNAMO_DISABLE": "1",
            # The engine in the sampler's own process: one import of vLLM in place of three.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
        engine_args={
            "dtype": dtype,
            "enforce_eager": True,
            "kv_cache_memory_bytes": _cache_bytes(config),
            "block_size": BLOCK,
            # Seeded requests that are prefilled in parts kill the CPU engine: its random
            # generator has no offset to set back.
            "enable_chunked_prefill": False,
        },
    )


def _cache_bytes(config: RunConfig) -> int:
    """Keys and values of all running completions at full length; without a number vLLM would
    reserve nearly all of the machine's memory."""
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(config.model.path).get_text_config()
    per_token = 2 * model.num_hidden_layers * kv_width(model) * 4
    blocks = -(-config.max_model_len // BLOCK) + 1
    return max(16 << 20, config.sampler.max_running * blocks * BLOCK * per_token)


def _cuda(config: RunConfig) -> Device:
    dtype = _dtype(config, "bfloat16")
    backend = config.cluster.weight_backend
    return Device(
        kind="cuda",
        dtype=dtype,
        collectives="nccl",
        weight_backend="nccl" if backend == "auto" else backend,
        canary_bound=_bound(config, dtype),
        resource="GPU",
        share=1,
        scorer_cpus=1,
        learner_env={**QUIET},
        sampler_env={
            **QUIET,
            # A core in the sampler's own process would not be drained at a pause.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        },
        engine_args={"dtype": dtype, "gpu_memory_utilization": 0.9},
    )
