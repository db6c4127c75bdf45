"""Memory of the learner's roles: measured on two ranks for the demo's model, beside the formula."""

import gc
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bench_learner import free_port, placement_of, tables_of  # noqa: E402

RANKS = 2
ROLES = {
    "policy": {"name": "grpo"},
    "policy + reference": {"name": "grpo", "kl": {"coef": 0.001}},
    "policy + reference + critic": {"name": "ppo", "kl": {"coef": 0.001}},
}


def measure(model: str) -> dict[str, Any]:
    """Bytes per rank, by ZeRO stage and by what is loaded."""
    context = multiprocessing.get_context("spawn")
    port, answers = free_port(), context.Queue()
    team = [
        context.Process(target=_rank, args=(rank, port, model, answers)) for rank in range(RANKS)
    ]
    for process in team:
        process.start()
    found = answers.get(timeout=600)
    for process in team:
        process.join(60)
    return found


def _rank(rank: int, port: int, model: str, answers: Any) -> None:
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    placement = placement_of(rank, RANKS, port)
    found: dict[str, Any] = {"ranks": RANKS, "stages": {}}
    for stage in (0, 1, 2, 3):
        found["stages"][stage] = {
            what: _one(model, placement, stage, algorithm) for what, algorithm in ROLES.items()
        }
    found |= _activations(model)
    if rank == 0:
        answers.put(found)


def _one(model: str, placement: Any, stage: int, algorithm: dict[str, Any]) -> dict[str, float]:
    """Live bytes after a step, and how many more just before it: the gradients."""
    import torch

    from learner.config import LearnerConfig, ModelConfig
    from learner.learner import Learner

    before = _live()
    settings = {
        "ranks": RANKS,
        "algorithm": algorithm,
        "zero": {"stage": stage},
        # As small as the model: the default buckets are many times the demo's parameters.
        "deepspeed": {
            "zero_optimization": {
                "reduce_bucket_size": 100_000,
                "stage3_param_persistence_threshold": 0,
                "stage3_prefetch_bucket_size": 100_000,
                "stage3_max_live_parameters": 100_000,
            }
        },
    }
    learner = Learner(
        LearnerConfig.model_validate(settings),
        ModelConfig(path=model),
        placement,
        steps=9,
        temperature=1.0,
        max_tokens=48,
    )
    [table] = tables_of(1)
    learner.update(table)  # the optimizer's state is made by its first step
    full, step = [], learner._step

    def measured() -> Any:
        full.append(_live())
        return step()

    learner._step = measured  # pyright: ignore[reportAttributeAccessIssue]
    learner.update(table)
    learner._step = step  # pyright: ignore[reportAttributeAccessIssue]
    table = None
    gc.collect()
    after = _live()
    weights = sum(_storage(p) for p in learner._model.parameters())
    optimizer = _optimizer_bytes(learner._engine._ds.optimizer)
    learner._engine._ds.destroy()
    if learner._critic is not None:
        learner._critic._ds.destroy()
    del learner
    gc.collect()
    torch.distributed.barrier()
    return {
        "total": after - before,
        "with_gradients": full[0] - before,
        "weights": weights,
        "optimizer": optimizer,
    }


def _storage(parameter: Any) -> int:
    shard = getattr(parameter, "ds_tensor", None)
    tensor = parameter if shard is None else shard
    return tensor.numel() * tensor.element_size()


def _optimizer_bytes(optimizer: Any) -> int:
    """AdamW's state, and the float32 copies that ZeRO keeps beside it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    seen: dict[int, int] = {}

    def add(tensor: Any) -> None:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()

    for state in inner.state.values():
        for value in state.values():
            if hasattr(value, "untyped_storage") and value.dim():
                add(value)
    copies = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    for name in copies:
        for tensor in getattr(optimizer, name, ()):
            add(tensor)
    return sum(seen.values())


def _live() -> int:
    """Bytes of all tensors of this process, each storage once."""
    import torch

    gc.collect()
    seen: dict[int, int] = {}
    for thing in gc.get_objects():
        try:
            if isinstance(thing, torch.Tensor):
                for tensor in (thing, thing.grad if thing.is_leaf else None):
                    if tensor is not None:
                        storage = tensor.untyped_storage()
                        seen[storage.data_ptr()] = storage.nbytes()
        except (ReferenceError, RuntimeError, NotImplementedError):
            continue
    return sum(seen.values())


def _activations(model: str) -> dict[str, Any]:
    """What a forward pass of a full micro-batch keeps for its backward."""
    import torch

    from learner.critic import load_critic
    from learner.model import Policy, load_model

    tokens_BT = torch.randint(1, 400, (128, 64))
    trains_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    trains_BT[:, :25] = False
    policy = Policy(load_model(model, dtype=torch.float32), temperature=1.0, logits_chunk=1 << 24)
    critic = load_critic(model, dtype=torch.float32, gradient_checkpointing=False)
    config = policy.model.config
    kept = {}
    calls = {
        "policy": lambda: policy(
            tokens_BT, trains_BT, tokens_BT.roll(-1, 1), positions=int(trains_BT.sum())
        ),
        "critic": lambda: critic(tokens_BT, trains_BT),
    }
    for name, call in calls.items():
        module = policy if name == "policy" else critic
        weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: Any, seen: dict[int, int] = seen, weights: set[int] = weights) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = call()
        kept[name] = sum(seen.values())
        del result
    heads = config.num_attention_heads
    return {
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "shape": {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "intermediate": config.intermediate_size,
            "kv": config.hidden_size // heads * config.num_key_value_heads,
            "vocabulary": config.vocab_size,
        },
        "tokens": tokens_BT.numel(),
        "activations": kept,
    }


if __name__ == "__main__":
    import json

    print(json.dumps(measure(sys.argv[1]), indent=1))
