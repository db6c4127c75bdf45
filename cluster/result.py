"""The end of a run, for people and as `result.json`."""

from typing import TYPE_CHECKING, Any

from cluster.checkpoint import weights_digest
from cluster.metrics import read_metrics
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
        "notes": run.inputs.notes,
        "seconds": phases | {"total": round(seconds + before, 2)},
        "run_folder": str(run.folder),
        "model": str(run.folder / "model") if saved else None,
        "weights_digest": weights_digest(saved) if saved else None,
    }
    if run.inputs.prompts is not None:
        result["completions_per_second"] = round(_rate(run), 1)
        result["sampled"] = _sampled(run)
    if run.evaluations.metrics and run.inputs.held_out:
        result |= _held_out(run, figures)
    return result


def _rate(run: "Run") -> float:
    """Completions per second of the steps that were timed: not of those that were replayed."""
    rows = [row for row in read_metrics(run.folder) if "time/update" in row]
    phases = ("time/rollout", "time/update", "time/publish")
    seconds = sum(row.get(phase, 0.0) for row in rows for phase in phases)
    groups = run.config.schedule.groups_per_step
    return sum(row["rollout/group_size"] for row in rows) * groups / max(seconds, 1e-9)


def _held_out(run: "Run", figures: dict[str, Any]) -> dict[str, Any]:
    first, last = min(run.evaluations.metrics), max(run.evaluations.metrics)
    columns = (*run.config.rewards.verifiers, "reward", "length")
    began = "warm start" if "accuracy_start" in figures else f"step {first}"
    stages = {began: first, f"step {last}": last}
    headline = f"eval/{run.headline}"
    accuracy = {step: metrics[headline] for step, metrics in run.evaluations.metrics.items()}
    result = {
        "accuracy_start": accuracy[first],
        "accuracy_final": accuracy[last],
        "accuracy_by_step": {str(step): round(accuracy[step], 4) for step in sorted(accuracy)},
        "best_step": run.best,
        "held_out": {
            name: {c: round(run.evaluations.metrics[step][f"eval/{c}"], 4) for c in columns}
            for name, step in stages.items()
        },
        "example_prompt": run.inputs.held_out[0].text,
        "examples": {name: run.evaluations.examples[step] for name, step in stages.items()},
    }
    if "accuracy_start" in figures:
        result["accuracy_warm"] = accuracy[first]
        result["accuracy_start"] = figures["accuracy_start"]
        for part in ("held_out", "examples"):
            result[part] = figures[part] | result[part]
    return result


SAMPLED = ("reward/mean", "rollout/length", "policy/entropy", "rollout/uniform_groups")


def _sampled(run: "Run") -> dict[str, dict[str, float]]:
    """The first and the last step's own completions: how training itself went."""
    rows = [row for row in read_metrics(run.folder) if "reward/mean" in row]
    return {
        f"step {row['step']}": {name: round(row[name], 4) for name in SAMPLED if name in row}
        for row in (*rows[:1], *rows[-1:])
    }


def show(result: dict[str, Any]) -> str:
    """The table that ends a run."""
    lines = [""]
    for title in ("held out", "sampled"):
        stages: dict[str, dict[str, float]] = result.get(title.replace(" ", "_"), {})
        if stages:
            lines += [*_table(title, stages), ""]
    if "examples" in result:
        lines.append(f"the first held-out prompt    {result['example_prompt']!r}")
        for name, text in result["examples"].items():
            lines.append(f"  {name:<14} {text[:160]!r}")
        lines.append("")
    phases = (f"{name} {duration(seconds)}" for name, seconds in result["seconds"].items())
    lines.append(f"time          {' · '.join(phases)}")
    if "completions_per_second" in result:
        lines.append(f"throughput    {result['completions_per_second']} completions/s in training")
    lines.append(f"run folder    {result['run_folder']}")
    lines.append(f"model         {result['model']}")
    return "\n".join(lines)


def _table(title: str, stages: dict[str, dict[str, float]]) -> list[str]:
    columns = list({column: None for values in stages.values() for column in values})
    left = max(len(name) for name in (title, *stages)) + 2
    rows = [[title, *(column.rpartition("/")[2] for column in columns)]]
    rows += [
        [name, *(_cell(c, values[c]) if c in values else "-" for c in columns)]
        for name, values in stages.items()
    ]
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(1, len(columns) + 1)]
    return [
        row[0].ljust(left) + "".join(c.rjust(w) for c, w in zip(row[1:], widths, strict=True))
        for row in rows
    ]


def _cell(column: str, value: float) -> str:
    """The mean of a verifier is a share; lengths, rewards and entropies are what they are."""
    if column.endswith("length"):
        return f"{value:.1f}"
    plain = column in ("reward", "reward/mean", "policy/entropy")
    return f"{value:.3f}" if plain else f"{value:.1%}"
