"""DeepSpeed behind five verbs: forward, backward, step, save, load. One for policy, one for critic.

The loss scale lives here and nowhere else. ZeRO averages gradients over ranks, and our denominators
are those of the whole step, so each loss is multiplied by the number of ranks. DeepSpeed's own
gradient accumulation is off: any number of backward passes, then one step.
"""

import math
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from learner.config import LearnerConfig, OptimConfig
from learner.presets import merged
from learner.shards import Layout, check_shard, layout_of, load_whole, make_whole

TAG = "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one rank runs; decided by the caller (`cluster/device.py`), passed down as values."""

    rank: int
    ranks: int
    address: str
    port: int
    collectives: str
    """Backend of torch.distributed."""
    dtype: torch.dtype
    timeout_seconds: float = 1800.0
    """How long a collective waits for the other ranks."""


class Engine:
    """One rank of a DeepSpeed ZeRO group around a module. Building it is a collective."""

    def __init__(
        self,
        module: torch.nn.Module,
        config: LearnerConfig,
        placement: Placement,
        *,
        optim: OptimConfig | None = None,
    ) -> None:
        import deepspeed

        initialize: Any = deepspeed.initialize  # its annotations are narrower than what it takes
        self._placement = placement
        optim = optim or config.optim
        self._clip_norm = optim.clip_norm
        self.stage = config.zero.stage
        self._plain = self.stage == 0 and placement.dtype == torch.float32
        self._ds, *_ = initialize(
            model=module,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            config=self._settings(config, optim),
        )
        if self._plain:
            # Without ZeRO, DeepSpeed clips but keeps the norm to itself.
            self._norm = math.nan
            self._ds.optimizer.register_step_pre_hook(self._clip)
        self.device: torch.device = self._ds.device

    def _settings(self, config: LearnerConfig, optim: OptimConfig) -> dict[str, Any]:
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if self._plain else optim.clip_norm,
            "optimizer": {
                "type": "AdamW",
                "params": {
                    "lr": optim.lr,
                    "betas": list(optim.betas),
                    "weight_decay": optim.weight_decay,
                    "torch_adam": True,  # the fused kernels are compiled on first use
                },
            },
            "zero_optimization": {
                "stage": config.zero.stage,
                "overlap_comm": False,
                "reduce_bucket_size": 50_000_000,
                "allgather_bucket_size": 50_000_000,
            },
            "bf16": {"enabled": self._placement.dtype == torch.bfloat16},
            "steps_per_print": 1 << 30,
        }
        for branch, key, why in (
            ("zero_optimization", "stage", "use learner.zero.stage"),
            ("zero_optimization", "compute_grad_norm", "steps that are not finite are found by it"),
            ("bf16", "check_grad_overflow", "without it, steps that are not finite are applied"),
        ):
            if key in config.deepspeed.get(branch, {}):
                raise ValueError(f"learner.deepspeed sets {branch}.{key}: {why}")
        return merged(settings, config.deepspeed)

    def _clip(self, optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self._clip_norm or math.inf
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(self._norm):
            for parameter in parameters:
                parameter.grad = None  # the optimizer passes over those that have none

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._ds(*args, **kwargs)

    def backward(self, loss: Tensor) -> float:
        """`loss` is this rank's share of the step's mean; its value. One that is not finite makes
        the gradient NaN, on all ranks once it is summed: the step is not applied anywhere."""
        value = loss.item()
        scale = self._placement.ranks if math.isfinite(value) else math.nan
        self._ds.backward(loss * scale, scale_wrt_gas=False)
        return value

    def step(self, lr: float) -> float:
        """Apply the accumulated gradients; the global norm they had before clipping. Where that is
        not finite nothing is applied, neither to weights nor to the optimizer's moments."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr
        self._ds.step()
        return self._norm if self._plain else float(self._ds.get_global_grad_norm())

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        return self._reduce(values, torch.distributed.ReduceOp.MAX)

    def _reduce(self, values: list[float], operation: Any) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total, op=operation)
        return total.tolist()

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """The same for a float32 array: each rank fills in its rows, all get all."""
        total = torch.from_numpy(values).to(self.device)
        torch.distributed.all_reduce(total)
        return total.cpu().numpy()

    def agreed(self, mask: np.ndarray) -> np.ndarray:
        """True where every rank has True: what a plan is made from has to be the same to the last
        bit, and exp() need not be on machines of different kinds."""
        total = torch.from_numpy(mask.astype(np.uint8)).to(self.device)
        torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.MIN)
        return total.cpu().numpy().astype(bool)

    def save(self, folder: Path) -> None:
        """Every rank writes its shards of weights and optimizer state under `folder`."""
        self._ds.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path, spare: Path) -> None:
        """From the shards of this many ranks at this stage or, by way of the `spare` folder, of
        others: a collective. Raises ValueError when one of them would run code: DeepSpeed unpickles
        whatever it finds."""
        shards = sorted((folder / TAG).glob("*.pt"))
        for shard in shards:
            check_shard(shard)
        saved, wanted = layout_of(shards), self._layout
        if saved != wanted and not (saved.family == wanted.family == "0"):
            self._load_resharded(folder, spare)  # without ZeRO, each rank's state is the whole
            return
        path, _ = self._ds.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"{folder} holds no state for {wanted}")

    def _load_resharded(self, folder: Path, spare: Path) -> None:
        """By way of a state in one piece, which the first rank makes."""
        first = self._placement.rank == 0
        named = self._ds.module.named_parameters()
        trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        try:
            if first:
                shutil.rmtree(spare, ignore_errors=True)
                make_whole(folder / TAG, spare / TAG, list(trained))
            torch.distributed.barrier()
            load_whole(self._ds.optimizer, self.stage, spare / TAG, trained)
            torch.distributed.barrier()
        finally:
            if first:
                shutil.rmtree(spare, ignore_errors=True)

    @property
    def _layout(self) -> Layout:
        family = "0" if self.stage == 0 else ("3" if self.stage == 3 else "1 or 2")
        return Layout(family, self._placement.ranks)


def shard_frozen(module: torch.nn.Module) -> Any:
    """A module that is never trained, its weights spread over the ranks (ZeRO-3 inference). A
    collective, as each forward pass is."""
    import deepspeed

    initialize: Any = deepspeed.initialize
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": next(module.parameters()).dtype == torch.bfloat16},
        "steps_per_print": 1 << 30,
    }
    engine, *_ = initialize(model=module, config=settings)
    engine.eval()
    return engine


def join(placement: Placement) -> None:
    """Enter the process group of all ranks: a collective. One visible device per process."""
    os.environ.update(
        RANK=str(placement.rank),
        WORLD_SIZE=str(placement.ranks),
        LOCAL_RANK="0",
        LOCAL_SIZE="1",
        MASTER_ADDR=placement.address,
        MASTER_PORT=str(placement.port),
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datetime

    import deepspeed

    # Compiled with g++ at the first start (half a minute), used by inference only, and it leaves
    # 69 MB per rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=placement.collectives,
        auto_mpi_discovery=False,
        timeout=datetime.timedelta(seconds=placement.timeout_seconds),
        verbose=False,
    )


def leave() -> None:
    """Without this, torch aborts now and then when the process ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
