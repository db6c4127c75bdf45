"""What all benchmarks share: pairs measured in turn, the median of their ratios, one JSON line."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
}
PAIRS = 15
Middle = Callable[[list[float]], float]


def interval(values: list[float], middle: Middle = statistics.median) -> tuple[float, float]:
    """Of their median: bootstrap, 90 %."""
    rng = random.Random(0)
    drawn = sorted(middle(rng.choices(values, k=len(values))) for _ in range(2_000))
    return drawn[100], drawn[1_900]


def line(
    name: str,
    what: str,
    ratios: list[float],
    target: str = "",
    *,
    middle: Middle = statistics.median,
    **figures: Any,
) -> None:
    """Report a ratio: the median of `ratios`, held against a target like ">= 0.97"."""
    found = middle(ratios)
    shown = {
        "name": name,
        "what": what,
        "ratio": rounded(found),
        "interval": [rounded(bound) for bound in interval(ratios, middle)],
        "pairs": len(ratios),
    }
    if target:
        sense, bound = target.split()
        shown |= {"target": target}
        shown |= {"ok": found >= float(bound) if sense == ">=" else found <= float(bound)}
    print(json.dumps(shown | figures), flush=True)


def rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 0.1 else round(value, 3)


def in_turn(*works: Callable[[], Any], pairs: int = PAIRS, warm: int = 1) -> list[list[float]]:
    """Seconds of each of the works, `pairs` times in turn, forwards and backwards: what drifts on a
    shared machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(warm):
        for work in works:
            work()
    for pair in range(pairs):
        numbers = range(len(works)) if pair % 2 == 0 else range(len(works) - 1, -1, -1)
        for number in numbers:
            started = time.perf_counter()
            works[number]()
            seconds[number].append(time.perf_counter() - started)
    return seconds


def ratios(first: list[float], second: list[float]) -> list[float]:
    """first / second, pair by pair."""
    return [a / b for a, b in zip(first, second, strict=True)]


def chosen(benchmarks: Iterable[str]) -> list[str]:
    """Those named on the command line; none or `all` is all. Ends with status 2 at a name that is
    none."""
    known = list(benchmarks)
    unknown = [name for name in sys.argv[1:] if name not in (*known, "all")]
    if unknown:
        print(f"no benchmark {unknown}; there are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return known if not sys.argv[1:] or "all" in sys.argv[1:] else sys.argv[1:]


def finished(command: list[str], *, env: dict[str, str] | None = None) -> str:
    """What a command prints. Raises RuntimeError with the end of it when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def cohort(verb: str, recipe: Path, settings: dict[str, Any], *flags: str) -> str:
    """`python -m cluster VERB`; what it prints."""
    words = [str(recipe), *(f"{key}={value}" for key, value in settings.items())]
    return finished([sys.executable, "-m", "cluster", verb, *words, *flags])


def trained(run_folder: Path) -> list[dict[str, float]]:
    """The metrics of a run's steps."""
    from cluster.metrics import read_metrics

    return [row for row in read_metrics(run_folder) if "learner/loss" in row]


def demo_model(folder: Path) -> str:
    """The demo's start model."""
    os.environ.update(ENV)
    from recipes.demo import build

    build(folder, seed=1, train_problems=10, card_rows=1, demonstrations=1)
    return str(folder / "model")


def random_model(folder: Path, *, hidden: int, layers: int, vocabulary: int = 4096) -> str:
    """A random Llama-shaped model: its weights do not matter where only time is measured."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
