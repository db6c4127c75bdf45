"""Golden values against ours:

    python -m learner.golden FILE

The file holds inputs (`cases`), entries with the peer's options, and what the peer got. Everything
is in float64. Exit code 0 when all agree, 1 when any does not, 2 when it is no such file.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from learner.golden import openrlhf, trl, verl
from learner.golden.case import Case, Result

TOLERANCE = 1e-6
"""Relative to the value expected, absolute below 1; 1e-5 where the peer computed in float32."""

KINDS: dict[str, Callable[[Case, Result], Result]] = {
    kind.__name__: kind
    for kind in (
        *(trl.trl_loss, trl.trl_advantages),
        *(verl.kl_penalty, verl.kl_in_reward, verl.agg_loss, verl.verl_policy_loss),
        *(verl.rollout_is, verl.rollout_rs, verl.adv, verl.value_loss, verl.whiten),
        *(openrlhf.openrlhf_policy_loss, openrlhf.openrlhf_value_loss, openrlhf.openrlhf_kl),
    )
}
"""What computes an entry, by its kind."""

INSIDE_ONLY = ("advantages", "raw_advantages(=returns-values)", "out", "returns")
"""Where the peer leaves meaningless numbers outside the mask."""


def compare(entry: Result, cases: Result) -> Iterator[tuple[str, float, float]]:
    """(what, expected, got) for each number of an entry that is out of tolerance.

    Raises ValueError for an entry that we do not know how to compute.
    """
    if entry["kind"] not in KINDS:
        raise ValueError(f"no entries of kind {entry['kind']!r} are known")
    try:
        case = Case(cases[entry["case"]], entry.get("inputs", {}))
        got = KINDS[entry["kind"]](case, entry["hyper"])
    except KeyError as error:
        raise ValueError(f"it has no {error}, or one that is not known") from error
    tolerance = 1e-5 if "float32" in str(entry["hyper"].get("precision")) else TOLERANCE
    for name, expected in _flat(entry["expect"]):
        value: Any = got
        for part in name:
            value = value.get(part, math.nan)
        ours = np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=float)
        theirs = np.asarray(expected, dtype=float)
        inside = np.ones(theirs.shape, dtype=bool)
        if name[-1] in INSIDE_ONLY and theirs.ndim == 2:
            inside = case.mask.numpy() > 0
        if ours.ndim == 2 and theirs.shape[1:] == (1,):
            ours = ours[:, :1]  # the peer writes a sequence's number once
        ours = np.broadcast_to(ours, theirs.shape)
        far = ~(np.abs(ours - theirs) <= tolerance * np.maximum(1.0, np.abs(theirs)))
        for index in np.argwhere(far & inside):
            where = "/".join(name) + "".join(f"[{i}]" for i in index)
            yield where, float(theirs[tuple(index)]), float(ours[tuple(index)])


def _flat(tree: Result, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, (*path, name))
        else:
            yield (*path, name), value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m learner.golden", description=__doc__)
    parser.add_argument("file", type=Path, help="golden values, as JSON")
    path = parser.parse_args(arguments).file
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        entries, cases = golden["entries"], golden["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path} is not a file of golden values: {type(error).__name__}: {error}")
        return 2
    missed = 0
    for entry in entries:
        try:
            misses = [f"{w}: expected {e:.12g}, got {g:.12g}" for w, e, g in compare(entry, cases)]
        except ValueError as error:
            misses = [f"cannot be computed: {error}"]
        missed += bool(misses)
        for line in misses:
            print(f"{entry['name']}: {line}")
    print(f"{len(entries)} entries, {len(entries) - missed} agree, {missed} do not")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
