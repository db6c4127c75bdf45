"""The files that DeepSpeed saves a training state in: how it is cut up, what is in them, and the
same in one piece."""

import argparse
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """How a training state is cut up."""

    family: str
    """ZeRO stages that cut it alike"""
    ranks: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks at ZeRO stage {self.family}"


def layout_of(shards: list[Path]) -> Layout:
    """Of a saved state, by the names of its files."""
    moments = [shard for shard in shards if shard.name.endswith("optim_states.pt")]
    if not moments:
        return Layout("0", 1)
    sharded = any(shard.name.startswith("zero_pp_rank_0_mp_rank_00_model") for shard in shards)
    return Layout("3" if sharded else "1 or 2", len(moments))


def make_universal(shards: Path, whole: Path) -> None:
    """A file for each parameter and each of its moments, which any number of ranks can load."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(whole),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(options)


SHARD_TYPES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What DeepSpeed writes into its shards besides tensors and plain values."""


def check_shard(path: Path) -> None:
    """Look at the types in a pickle without loading it."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise ValueError(f"{path} is no file of torch's: {error}") from error
    foreign = sorted(set(found) - SHARD_TYPES)
    if foreign:
        raise ValueError(f"{path} holds {', '.join(foreign)}, which no run of ours writes")
