"""End to end against TRL's GRPOTrainer: same model, prompts, group size, lengths, dtype and cores.

TRL lives in an environment of its own: `TRL_PYTHON` names its interpreter. The script that times
it, and that makes the models, is in `../shared/peers`.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from measure import ROOT, cohort, finished, line, trained

PEERS = ROOT.parent / "shared" / "peers"
PROMPTS, SIZE, LONGEST, STEPS, PAIRS = 8, 8, 64, 8, 3
LEARNING_STEPS, SEEDS = 60, 4

VERIFIER = """
def verify(completion, answer):
    found = sum(completion[i : i + 1] == digit for i, digit in enumerate(answer))
    return found / len(answer)
"""
"""The reward of the peer's script."""

WITH_REWARDS = """
import json, runpy, statistics, sys
import trl
rewards, plain = [], trl.GRPOTrainer._calculate_rewards
def kept(*args, **options):
    found = plain(*args, **options)
    rewards.append(float(found.mean()))
    return found
trl.GRPOTrainer._calculate_rewards = kept
script, *sys.argv = sys.argv[1:]
sys.argv.insert(0, script)
runpy.run_path(script, run_name="__main__")
print(json.dumps({"rewards": rewards}))
"""


def theirs(folder: Path, model: str, steps: int, seed: int = 1) -> tuple[float, list[float]]:
    """(completions per second, mean reward of each step)"""
    words = ["--model", str(folder / model), "--prompts", str(folder / "prompts.jsonl")]
    words += ["--G", str(SIZE), "--prompts-per-step", str(PROMPTS), "--max-tokens", str(LONGEST)]
    words += ["--steps", str(steps), "--quiet", "2", "--grad-ckpt", "0", "--seed", str(seed)]
    command = [os.environ["TRL_PYTHON"], "-c", WITH_REWARDS, str(PEERS / "trl_bench.py"), *words]
    own = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    said = finished(command, env=own | {"CUDA_VISIBLE_DEVICES": ""})
    timed, rewarded = [json.loads(t) for t in said.splitlines() if t.startswith("{")][-2:]
    return timed["completions_per_s"], rewarded["rewards"][:steps]  # it warms up for two more


def ours(folder: Path, model: str, steps: int, seed: int = 1) -> tuple[float, list[float]]:
    verifier = folder / "digits.py"
    verifier.write_text(VERIFIER)
    settings = {
        "name": "peer",
        "seed": seed,
        "steps": steps,
        "model.path": folder / model,
        "prompts.dataset": folder / "prompts.jsonl",
        "prompts.max_tokens": 16,
        "sampler.replicas": 2,  # a core each, as the peer's two threads
        "sampler.group_size": SIZE,
        "sampler.sampling.max_tokens": LONGEST,
        "rewards.verifiers": f'{{"{verifier}:verify": 1.0}}',
        "schedule.groups_per_step": PROMPTS,
        "learner.ranks": 2,
        "learner.zero.stage": 0,
        "learner.algorithm.name": "grpo",
        "learner.algorithm.reduction": "token_mean",
        "learner.optim.lr": 1e-4,
        "learner.optim.betas": "[0.9, 0.999]",
        "learner.optim.warmup_steps": 0,
        "logging.trackers": "[]",
        "checkpoint.every": 0,
        "output_dir": folder / "outputs",
    }
    empty = folder / "empty.yaml"
    empty.write_text("")
    cohort("train", empty, settings, "--fresh")
    rows = trained(folder / "outputs" / "peer")
    seconds = [b["time"] - a["time"] for a, b in itertools.pairwise(rows[2:])]
    return PROMPTS * SIZE / statistics.median(seconds), [row["reward/mean"] for row in rows]


def b17() -> None:
    if "TRL_PYTHON" not in os.environ or not PEERS.is_dir():
        needs = "TRL_PYTHON (an interpreter that has trl) and ../shared/peers"
        print(f"B17 left out: it needs {needs}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished([sys.executable, str(PEERS / "make_models.py"), name])
        found = []
        for pair in range(PAIRS):
            both = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
            rate = {side: side(folder, "q25m", STEPS + 2)[0] for side in both}
            found.append(rate[ours] / rate[theirs])
        what = "completions/s end to end / TRL's GRPOTrainer, 25M parameters, ragged lengths"
        line("B17", what, found, ">= 2.0")
        # One seed says little: whether reward takes off at step 30 or 45 is luck, on both sides.
        last = {
            side: [
                statistics.fmean(
                    side(folder, "q2_6m", LEARNING_STEPS, seed)[1][-LEARNING_STEPS // 4 :]
                )
                for seed in range(1, SEEDS + 1)
            ]
            for side in (ours, theirs)
        }
        found = [mine / its for mine in last[ours] for its in last[theirs]]
        what = f"mean reward of the last quarter of {LEARNING_STEPS} steps, 2.6M / TRL's, all pairs"
        line("B17_learning", what, found, ">= 1.0", ours=last[ours], theirs=last[theirs])
