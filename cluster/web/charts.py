"""Charts as SVG, in the page itself: no script, nothing to fetch. Values come with a tooltip."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cluster.web.shown import number, visible

WIDTH, HEIGHT = 420, 150
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 20
COLOURS = 8
"""Classes `c0` to `c7` of style.css"""
MOST_POINTS = 300

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def line_chart(title: str, lines: Mapping[str, Points]) -> Markup:
    """A curve for each name; points that are not finite are left out. Nothing without points."""
    curves = {name: _thinned(points) for name, points in lines.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return Markup("")
    everything = [point for points in curves.values() for point in points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_axes(across, up)]
    for index, (name, points) in enumerate(curves.items()):
        places = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(
            Markup('<polyline class="line c{}" points="{}"/>').format(index % COLOURS, places)
        )
        for x, y in points if len(points) <= 60 else points[:: math.ceil(len(points) / 60)]:
            told = f"{name}, step {number(x)}: {number(y)}"
            parts.append(
                Markup(
                    '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="2.5">'
                    "<title>{}</title></circle>"
                ).format(index % COLOURS, across(x), up(y), visible(told))
            )
    picture = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, visible(title), Markup("").join(parts)
    )
    keys = _keys(curves) if len(curves) > 1 else ""
    return Markup("<figure><figcaption>{} {}</figcaption>{}</figure>").format(
        visible(title), keys, picture
    )


def _axes(across: Scale, up: Scale) -> Markup:
    parts = [
        Markup('<path class="axis" d="M{0} {1}V{2}H{3}"/>').format(
            LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT
        )
    ]
    for value in {up.low, up.high}:
        parts.append(
            Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>').format(
                LEFT - 4, up(value) + 4, number(value)
            )
        )
    for value in {across.low, across.high}:
        end = " end" * (value == across.high)
        parts.append(
            Markup('<text class="tick{}" x="{:.1f}" y="{}">{}</text>').format(
                end, across(value), HEIGHT - 5, number(value)
            )
        )
    return Markup("").join(parts)


def _thinned(points: Points) -> list[tuple[float, float]]:
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    every = math.ceil(len(kept) / MOST_POINTS) or 1
    return [*kept[:-1:every], *kept[-1:]]


ROW = 16
NAMES = 110
"""Width of the names beside the bars"""


@dataclass(slots=True)
class Bar:
    who: str
    what: str
    start: float
    end: float
    worked: float
    """Seconds; less than from start to end where stretches too close to be told apart are one"""


def time_chart(stretches: Sequence[Mapping[str, Any]]) -> Markup:
    """Who worked when: a row for each, bars where they worked, gaps where they waited."""
    if not stretches:
        return Markup("")
    width = 2 * WIDTH
    begin = min(each["at"] for each in stretches)
    end = max(each["at"] + each["seconds"] for each in stretches)
    across = Scale(begin, end, NAMES, width - RIGHT)
    bars = _bars(stretches, nearest=0.5 * (end - begin) / width)
    who = sorted({bar.who for bar in bars})
    kinds = sorted({bar.what for bar in bars})
    parts = [
        Markup('<text class="tick" x="2" y="{}">{}</text>').format(row * ROW + 12, visible(name))
        for row, name in enumerate(who)
    ]
    for bar in bars:
        left = across(bar.start)
        parts.append(
            Markup(
                '<rect class="bar c{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}">'
                "<title>{}: {}, {} s</title></rect>"
            ).format(
                kinds.index(bar.what) % COLOURS,
                left,
                who.index(bar.who) * ROW + 2,
                max(across(bar.end) - left, 0.3),
                ROW - 3,
                visible(bar.who),
                visible(bar.what),
                number(bar.worked),
            )
        )
    height = len(who) * ROW + 16
    parts.append(
        Markup('<text class="tick end" x="{}" y="{}">{} s</text>').format(
            width - RIGHT, height - 3, number(end - begin)
        )
    )
    return Markup(
        '<figure class="wide"><figcaption>who worked when {}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="who worked when">{}</svg></figure>'
    ).format(_keys(kinds), width, height, Markup("").join(parts))


def _bars(stretches: Sequence[Mapping[str, Any]], nearest: float) -> list[Bar]:
    """A bar for what lies less than `nearest` seconds apart."""
    bars: list[Bar] = []
    last: dict[tuple[str, str], Bar] = {}
    for each in stretches:
        who, what, start, seconds = each["who"], each["what"], each["at"], each["seconds"]
        bar = last.get((who, what))
        if bar is not None and 0 <= start - bar.end < nearest:
            bar.end, bar.worked = start + seconds, bar.worked + seconds
        else:
            bar = last[who, what] = Bar(who, what, start, start + seconds, seconds)
            bars.append(bar)
    return bars


def _keys(names: Iterable[str]) -> Markup:
    return Markup(" ").join(
        Markup('<span class="key c{}">{}</span>').format(index % COLOURS, visible(name))
        for index, name in enumerate(names)
    )


CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reward", ("reward/mean",)),
    ("groups that teach nothing", ("rollout/uniform_groups", "rollout/all_one_groups")),
    ("length in tokens", ("rollout/length", "rollout/length_max")),
    ("cut at the limit", ("rollout/truncated",)),
    ("entropy per token", ("policy/entropy",)),
    ("sampler against learner (KL)", ("policy/kl_behaviour",)),
    ("clipped tokens", ("policy/clip_fraction_high", "policy/clip_fraction_low")),
    ("gradient norm", ("learner/grad_norm",)),
    ("staleness in versions", ("schedule/staleness_mean", "schedule/staleness_max")),
    ("idle share", ("idle/learner", "idle/sampler", "idle/scorer")),
    ("seconds", ("time/rollout", "time/update", "time/publish")),
    ("tokens per second", ("rollout/tokens_per_s", "learner/tokens_per_s")),
    ("what verifiers could not score", ("reward/verifier_errors", "reward/timeouts")),
)
"""Title and metrics"""


def charts_of(
    rows: Sequence[Mapping[str, float]], parts: Sequence[str], evaluated: Sequence[Mapping]
) -> list[Markup]:
    """The curves of a run. `parts` are its verifiers, `evaluated` the lines of evaluations."""

    def points(name: str) -> Points:
        return [(row["step"], row[name]) for row in rows if name in row]

    held_out = {
        part: [
            (line["step"], line["metrics"][f"eval/{part}"])
            for line in evaluated
            if f"eval/{part}" in line.get("metrics", {})
        ]
        for part in parts
    }
    drawn = [
        line_chart("held out", held_out),
        line_chart("parts of the reward", {part: points(f"reward/{part}") for part in parts}),
        *(line_chart(title, {name: points(name) for name in names}) for title, names in CHARTS),
    ]
    return [chart for chart in drawn if chart]
