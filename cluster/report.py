"""The end of a run, for people and as `result.json`."""

from typing import TYPE_CHECKING, Any

from cluster.checkpoint import weights_digest
from cluster.progress import duration

if TYPE_CHECKING:
    from cluster.run import Run


def result_of(run: "Run", figures: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """What a finished run has to say.

    `figures` come from the recipe's `prepare`, when that trained a warm start: then the policy that
    this run started from is the warm one, and the start is the model that `prepare` started from.
    """
    saved = run.last_checkpoint()
    phases = {name: round(value, 2) for name, value in run.seconds.items()}
    phases |= figures.get("seconds", {})
    before = sum(figures.get("seconds", {}).values())
    result: dict[str, Any] = {
        "seed": run.config.seed,
        "steps": run.config.steps,
        "resumed_from": run.resumed_from,
        "headline": run.headline,
        "seconds": phases | {"total": round(seconds + before, 2)},
        "run_folder": str(run.folder),
        "model": str(run.folder / "model") if saved else None,
        "weights_digest": weights_digest(saved) if saved else None,
    }
    if run.inputs.prompts is not None:
        phase_names = ("rollout", "update", "publish")
        training = sum(run.seconds.get(name, 0.0) for name in phase_names)
        completions = run.trained_groups * run.config.sampler.group_size
        result["completions_per_second"] = round(completions / max(training, 1e-9), 1)
    if run.evaluations:
        result |= _held_out(run, figures)
    return result


def _held_out(run: "Run", figures: dict[str, Any]) -> dict[str, Any]:
    first, last = min(run.evaluations), max(run.evaluations)
    columns = (*run.config.rewards.verifiers, "reward", "length")
    stages = {
        "warm start" if "accuracy_start" in figures else f"step {first}": first,
        f"step {last}": last,
    }
    table = {
        name: {c: round(run.evaluations[step][f"eval/{c}"], 4) for c in columns}
        for name, step in stages.items()
    }
    headline = f"eval/{run.headline}"
    accuracy = {step: metrics[headline] for step, metrics in run.evaluations.items()}
    result = {
        "accuracy_start": accuracy[first],
        "accuracy_final": accuracy[last],
        "accuracy_by_step": {str(step): round(accuracy[step], 4) for step in sorted(accuracy)},
        "best_step": run.best,
        "held_out": table,
        "examples": [*figures.get("examples", []), *run.examples[:1]],
    }
    if "accuracy_start" in figures:
        result["accuracy_start"] = figures["accuracy_start"]
        result["accuracy_warm"] = accuracy[first]
        result["held_out"] = {**figures["held_out"], **table}
    return result


def show(result: dict[str, Any]) -> str:
    """The table that ends a run."""
    lines = [""]
    stages: dict[str, dict[str, float]] = result.get("held_out", {})
    if stages:
        columns = list(next(iter(stages.values())))
        widths = [max(len(column) + 2, 10) for column in columns]
        left = max(len(name) for name in ("held out", *stages)) + 2
        heads = zip(columns, widths, strict=True)
        lines.append("held out".ljust(left) + "".join(c.rjust(w) for c, w in heads))
        for name, values in stages.items():
            cells = zip(columns, widths, strict=True)
            lines.append(name.ljust(left) + "".join(_cell(c, values[c]).rjust(w) for c, w in cells))
        lines.append("")
    phases = (f"{name} {duration(seconds)}" for name, seconds in result["seconds"].items())
    lines.append(f"time          {' · '.join(phases)}")
    if "completions_per_second" in result:
        lines.append(f"throughput    {result['completions_per_second']} completions/s in training")
    lines.append(f"run folder    {result['run_folder']}")
    lines.append(f"model         {result['model']}")
    return "\n".join(lines)


def _cell(column: str, value: float) -> str:
    """A verifier's mean is a share; reward and length are what they are."""
    if column == "length":
        return f"{value:.1f}"
    return f"{value:.3f}" if column == "reward" else f"{value:.1%}"
