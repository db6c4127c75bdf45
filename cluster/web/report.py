"""`python -m cluster report RUN`: a run as one page that needs nothing besides itself."""

import json
import time
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.config import RunConfig, flatten
from cluster.health import AT_FIRST, RECENT, warnings
from cluster.timeline import chrome_trace, read_timeline
from cluster.web.app import environment, style_sheet
from cluster.web.charts import charts_of, time_chart
from cluster.web.store import RunFolder

SAMPLES = 4
"""Best and worst completions, each"""
LOOKED_AT = 5
"""Steps whose tables they are taken from, the newest"""


def write_report(folder: Path, target: Path, trace: Path | None) -> None:
    """Raises ValueError when the folder is no run's, or the run has no step yet."""
    if not RunFolder.is_one(folder):
        raise ValueError(f"{folder} is no run folder: it has no config.json")
    run = RunFolder(folder)
    rows = run.metrics
    if not rows:
        raise ValueError(f"{folder} has no step in metrics.jsonl yet: there is nothing to report")
    config, lines, result = RunConfig.model_validate(run.config), read_timeline(folder), run.result
    held_out = {
        f"step {line['step']}": {
            name.partition("/")[2]: value for name, value in line["metrics"].items()
        }
        for line in run.evaluations
    }
    page = environment.get_template("report.html").render(
        run=run,
        rows=rows,
        result=result,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style_sheet()),
        warnings=list(warnings(rows[:AT_FIRST], rows[-RECENT:], config).values()),
        held_out=held_out,
        columns=list(dict.fromkeys(name for values in held_out.values() for name in values)),
        charts=charts_of(rows, list(config.rewards.verifiers), run.evaluations),
        timeline=time_chart(lines),
        idle=_means(rows, "idle/"),
        phases=result.get("seconds", {}),
        faults=run.faults,
        samples=_samples(run),
        config=dict(flatten(run.config)),
    )
    target.write_bytes(page.encode("utf-8", errors="replace"))
    if trace is not None:
        trace.write_text(json.dumps(chrome_trace(lines)))


def _means(rows: list[dict[str, float]], prefix: str) -> dict[str, float]:
    names = sorted({name for row in rows for name in row if name.startswith(prefix)})
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name.removeprefix(prefix): sum(v) / len(v) for name, v in found.items()}


def _samples(run: RunFolder) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Of the last steps whose tables can be read."""
    found = []
    for step in run.steps[-LOOKED_AT:]:
        try:
            table = run.table(step)
        except ValueError:
            continue
        columns = ["prompt", "completion", "reward", "reward_parts"]
        rows = table.select(columns).to_pylist()
        found += [(step, row) for row in rows if row["reward"] is not None]
    found.sort(key=lambda each: each[1]["reward"])
    return {
        "Best completions of the last steps": found[::-1][:SAMPLES],
        "Worst completions of the last steps": found[:SAMPLES],
    }
