"""The files that DeepSpeed saves a training state in: how it is cut up, what is in them, and the
same in one piece."""

import argparse
import contextlib
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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


MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, which are kept in float32 beside the weights."""


def make_whole(shards: Path, whole: Path, names: list[str]) -> None:
    """From the shards of any stage, a file for each parameter and each of its moments. It is
    DeepSpeed's universal checkpoint in a form that its loaders of all stages read; theirs for stage
    3 and for the others expect different files. `names` are the trained parameters, in order."""
    folder = whole / "zero"
    if layout_of(list(shards.glob("*.pt"))).family == "0":
        step, states = _states_of_one_piece(shards, names)
        for name in names:
            (folder / name).mkdir(parents=True)
            for key, value in states[name].items():
                torch.save({"param": value}, folder / name / f"{key}.pt")
    else:
        _make_universal(shards, whole)
        step = _step_of(shards)
        for path in (folder / name / f"{key}.pt" for name in names for key in ("fp32", *MOMENTS)):
            value = _read(path)
            if torch.is_tensor(value):  # still mapped from this very file
                torch.save({"param": value}, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)
    for name in names:
        torch.save(step, folder / name / "step.pt")
    import deepspeed

    inner = {"state": {0: {"step": step}}, "param_groups": [{}]}
    outer = {"ds_version": deepspeed.__version__, "param_groups": [{}]}
    torch.save(outer | {"optimizer_state_dict": inner}, folder / "optimizer_state.pt")


def load_whole(optimizer: Any, stage: int, whole: Path, parameters: dict[str, Any]) -> None:
    """Into DeepSpeed's optimizer of this stage, and the module that it trains; a collective.
    `parameters` are the trained ones by name, in order."""
    if stage > 0:
        optimizer.load_state_dict(None, checkpoint_folder=str(whole))
        if stage < 3:
            optimizer.update_lp_params()  # stage 3 has done so
        for state in optimizer.optimizer.state.values():
            # Stage 3 gives one tensor to all its groups, each of which then counts it up in place.
            state["step"] = state["step"].clone()
        return
    masters, moments = [], {}
    for i, (name, parameter) in enumerate(parameters.items()):
        folder = whole / "zero" / name
        read = {key: _read(folder / f"{key}.pt")["param"] for key in ("fp32", *MOMENTS)}
        master = read.pop("fp32").reshape(parameter.shape)
        masters.append(master)
        shaped = {key: value.reshape(parameter.shape) for key, value in read.items()}
        moments[i] = {**shaped, "step": _read(folder / "step.pt")}
        with torch.no_grad():
            parameter.copy_(master)
    state = optimizer.state_dict()
    if "optimizer_state_dict" in state:  # bfloat16: masters beside the weights
        state["optimizer_state_dict"]["state"] = moments
        state["fp32_groups"] = [masters]
    else:
        state["state"] = moments
    optimizer.load_state_dict(state)


def _make_universal(shards: Path, whole: Path) -> None:
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


def _step_of(shards: Path) -> Tensor:
    """How often the optimizer has stepped, which its first moments are corrected by."""
    first = min(shards.glob("*_optim_states.pt"))
    state = _read(first)["optimizer_state_dict"]
    base = state.get("base_optimizer_state") or state["optimizer_state_dict"]
    return base["state"][0]["step"]


def _states_of_one_piece(
    shards: Path, names: list[str]
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Without ZeRO: the step, and weights and moments in float32 by name."""
    [path] = shards.glob("*.pt")
    saved = _read(path)
    optimizer, weights = saved["optimizer"], saved["module"]
    if "fp32_groups" in optimizer:
        [masters] = optimizer["fp32_groups"]
        weights = dict(zip(names, masters, strict=True))
        optimizer = optimizer["optimizer_state_dict"]
    states = {}
    for i, name in enumerate(names):
        moments = {key: optimizer["state"][i][key] for key in MOMENTS}
        states[name] = {"fp32": weights[name].detach(), **moments}
    return optimizer["state"][0]["step"], states


def _read(path: Path) -> Any:
    """As far as needed, of a file whose types were looked at."""
    types = [_type(name) for name in sorted(SHARD_TYPES)]
    with torch.serialization.safe_globals(types):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _type(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


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
