"""`python -m cluster view`: runs, steps, groups and single completions, as pages made here.

Without a script, so that whatever a model wrote can only be looked at.
"""

import math
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster import logprobs
from cluster.config import RunConfig
from cluster.health import AT_FIRST, RECENT, warnings
from cluster.timeline import read_timeline
from cluster.web.charts import charts_of, time_chart
from cluster.web.shown import clipped, number, visible
from cluster.web.store import MOST_FOUND, SORTS, Filter, GroupRows, RunFolder, Runs
from rewards import OUTCOMES

PER_PAGE = 20
"""Groups"""
MOST_TIMES = 40
"""Groups of one prompt over training"""
MODES = ("logprob", "ratio", "version", "trainable")
"""What tokens are coloured by"""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
ANY = ("0.0.0.0", "::")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

environment = Environment(
    loader=PackageLoader("cluster.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters |= {"visible": visible, "number": number, "clipped": clipped}


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    style: str
    """Class of style.css"""
    told: str


def make_app(root: Path, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """Raises ValueError when there is no run folder at or below `root`. `hosts` are the names under
    which it may be asked for: others are refused, so that no page of somebody else's can read what
    is here through a name of theirs."""
    pages = Pages(Runs(root))
    routes = [
        Route("/", pages.answer(pages.runs)),
        Route("/style.css", style),
        Route("/compare", pages.answer(pages.compare)),
        Route("/run/{name:path}/step/{step:int}/group/{ticket:int}", pages.answer(pages.group)),
        Route("/run/{name:path}/step/{step:int}/{ticket:int}/{sample:int}.txt", pages.whole),
        Route("/run/{name:path}/step/{step:int}", pages.answer(pages.step)),
        Route("/run/{name:path}/prompt", pages.answer(pages.prompt)),
        Route("/run/{name:path}/search", pages.answer(pages.search)),
        Route("/run/{name:path}", pages.answer(pages.run)),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    return Starlette(routes=routes, middleware=[guard])


def style(_: Request) -> Response:
    return Response(style_sheet(), media_type="text/css", headers=HEADERS)


def style_sheet() -> str:
    return (Path(__file__).parent / "style.css").read_text()


Page = Callable[[Request], tuple[str, Mapping[str, Any]]]
"""The name of a template, and what it is filled with."""


class Pages:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def answer(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """A request for a page; what is not there is a 404 that says so."""

        def made(request: Request) -> tuple[str, int]:
            try:
                template, values = page(request)
                return environment.get_template(template).render(**values), 200
            except (ValueError, KeyError, OSError) as error:
                return environment.get_template("error.html").render(why=str(error)), 404

        async def answered(request: Request) -> Response:
            text, status = await run_in_threadpool(made, request)
            # Lone surrogates, which no page could be sent with, become question marks.
            body = text.encode("utf-8", errors="replace")
            return HTMLResponse(body, status_code=status, headers=HEADERS)

        return answered

    def runs(self, _: Request) -> tuple[str, Mapping[str, Any]]:
        found = []
        for name, run in self._runs.all().items():
            try:
                rows = run.metrics
            except (ValueError, KeyError, OSError):  # damaged; its own page says so
                rows = []
            found.append({"name": name, "rows": rows, "last": rows[-1] if rows else {}})
        return "runs.html", {"runs": found}

    def run(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        run = self._of(request)
        rows, config = run.metrics, RunConfig.model_validate(run.config)
        found = warnings(rows[:AT_FIRST], rows[-RECENT:], config) if len(rows) >= RECENT else {}
        return "run.html", {
            "run": run,
            "rows": rows,
            "steps": set(run.steps),
            "charts": charts_of(rows, list(config.rewards.verifiers), run.evaluations),
            "timeline": time_chart(read_timeline(run.folder)),
            "faults": run.faults,
            "warnings": found,
        }

    def step(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        run, step = self._of(request), request.path_params["step"]
        wanted, asked = filter_of(request), request.query_params
        sort = choice(request, "sort", SORTS)
        falling = asked.get("falling") == "1"
        groups = run.groups(step, wanted, sort=sort, falling=falling)
        pages = max(math.ceil(len(groups) / PER_PAGE), 1)
        page = min(max(int(asked.get("page", "1")), 1), pages)
        shown = groups[(page - 1) * PER_PAGE : page * PER_PAGE]
        kept = {key: value for key, value in asked.items() if key != "page" and value}
        return "step.html", {
            "run": run,
            "step": step,
            "steps": run.steps,
            "groups": [GroupRows(ticket, step, rows.to_pylist()) for ticket, rows in shown],
            "found": len(groups),
            "page": page,
            "pages": pages,
            "link": f"?{urlencode({**kept, 'page': ''})}",
            "wanted": wanted,
            "sort": sort,
            "falling": falling,
            "sorts": SORTS,
            "outcomes": OUTCOMES,
            "row": run.row(step),
        }

    def group(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        run, step = self._of(request), request.path_params["step"]
        group = self._group(run, step, request.path_params["ticket"])
        mode = choice(request, "colour", MODES)
        return "group.html", {
            "run": run,
            "step": step,
            "group": group,
            "mode": mode,
            "modes": MODES,
            "noted": logprobs.COLUMN in group.rows[0],
            "tokens": [
                tokens_of(run, row, mode, MOST_TOKENS // len(group.rows)) for row in group.rows
            ],
        }

    def prompt(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        run, wanted = self._of(request), request.query_params.get("id", "")
        found = run.history(wanted)
        if not found:
            raise ValueError(f"no step of {run.name} has the prompt {wanted!r}")
        every = math.ceil(len(found) / MOST_TIMES)  # the first, some between, the last
        shown = [*found[:-1:every], found[-1]]
        return "prompt.html", {"run": run, "id": wanted, "groups": shown, "times": len(found)}

    def search(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        run, wanted = self._of(request), filter_of(request)
        found, more = [], False
        if wanted:
            count = 0
            for group in run.search(wanted):
                if count >= MOST_FOUND:
                    more = True
                    break
                found.append(group)
                count += len(group.rows)
        values = {"run": run, "wanted": wanted, "groups": found, "more": more}
        return "search.html", {**values, "outcomes": OUTCOMES, "most": MOST_FOUND}

    def compare(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Two steps, of one run or of two, by the prompts that both have."""
        sides = []
        for side in ("a", "b"):
            name = request.query_params.get(side, "")
            run, step = self._runs.run(name), request.query_params.get(f"{side}_step", "")
            if not step.isdecimal():
                raise ValueError(f"{side}_step={step!r} is no step")
            groups = run.groups(int(step), Filter())
            by_prompt = {
                rows["prompt_id"][0].as_py(): GroupRows(ticket, int(step), rows.to_pylist())
                for ticket, rows in groups
            }
            row = run.row(int(step))
            sides.append((run, int(step), by_prompt, row))
        (a, a_step, a_groups, a_row), (b, b_step, b_groups, b_row) = sides
        both = [
            (prompt, a_groups[prompt], b_groups[prompt])
            for prompt in a_groups
            if prompt in b_groups
        ]
        return "compare.html", {
            "a": a,
            "b": b,
            "a_step": a_step,
            "b_step": b_step,
            "names": sorted({*a_row} & {*b_row} - {"step", "time"}),
            "a_row": a_row,
            "b_row": b_row,
            "both": both[:PER_PAGE],
            "common": len(both),
            "a_count": len(a_groups),
            "b_count": len(b_groups),
        }

    async def whole(self, request: Request) -> Response:
        """A completion, however long, as plain text."""
        try:
            run, where = self._of(request), request.path_params
            group = await run_in_threadpool(self._group, run, where["step"], where["ticket"])
            [row] = [row for row in group.rows if row["sample_id"] == where["sample"]]
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", status_code=404, headers=HEADERS)
        return PlainTextResponse(row["completion"], headers=HEADERS)

    def _of(self, request: Request) -> RunFolder:
        return self._runs.run(request.path_params["name"])

    def _group(self, run: RunFolder, step: int, ticket: int) -> GroupRows:
        for found, rows in run.groups(step, Filter()):
            if found == ticket:
                return GroupRows(ticket, step, rows.to_pylist())
        raise ValueError(f"step {step} of {run.name} has no group {ticket}")


def choice(request: Request, name: str, known: Sequence[str]) -> str:
    """The first where nothing was asked for. Raises ValueError for what is none of them."""
    asked = request.query_params.get(name, known[0])
    if asked not in known:
        raise ValueError(f"{name}={asked!r}: it is one of {', '.join(filter(None, known))}")
    return asked


def filter_of(request: Request) -> Filter:
    """Raises ValueError for an outcome or a number that is none."""
    asked = request.query_params
    outcome = choice(request, "outcome", ("", *OUTCOMES))
    bounds = {}
    for name in ("low", "high"):
        text = asked.get(name, "")
        try:
            bounds[name] = float(text) if text else None
        except ValueError:
            raise ValueError(f"{name}={text!r} is no number") from None
    return Filter(text=asked.get("q", ""), outcome=outcome, **bounds)


def tokens_of(run: RunFolder, row: Mapping[str, Any], mode: str, most: int) -> list[Token] | None:
    """None where there is no tokenizer: then the text is shown as it is."""
    ids = row["completion_ids"][:most]
    pieces = run.pieces(ids)
    if pieces is None:
        return None
    first = min(row["policy_versions"])
    tokens = []
    for piece, logprob, version, trainable, learners in zip(
        pieces,
        row["behaviour_logprobs"],
        row["policy_versions"],
        row["trainable"],
        row.get(logprobs.COLUMN) or [math.nan] * len(ids),
        strict=False,
    ):
        gap = learners - logprob
        if mode == "version":
            shade = f"v{(version - first) % 8}"
        elif mode == "trainable":
            shade = "t1" if trainable else "t0"
        elif mode == "ratio":
            shade = ratio_shade_of(gap) if trainable else "t0"
        else:
            shade = f"p{shade_of(logprob)}" if trainable else "t0"
        told = f"{visible(piece)!r}: logprob {number(logprob)}, version {version}"
        if math.isfinite(gap):
            told += f", ratio {number(math.exp(min(gap, 700)))}"
        tokens.append(Token(visible(piece), shade, told + ", not trained" * (not trainable)))
    return tokens


MOST_TOKENS = 32_000
"""Of all siblings on a page"""


def shade_of(logprob: float) -> int:
    """0 for a token that was certain, 7 for one that was a surprise, in steps of half a nat.

    >>> shade_of(0.0), shade_of(-1.2), shade_of(-9.0)
    (0, 2, 7)
    """
    return min(int(-2 * logprob), 7) if math.isfinite(logprob) else 7


def ratio_shade_of(gap: float) -> str:
    """Of the logarithm of the ratio of the learner's probability and the sampler's: to which side,
    and how far, from a hundredth to half a nat.

    >>> [ratio_shade_of(gap) for gap in (0.001, 0.05, -0.3, 2.0)]
    ['same', 'up1', 'down2', 'up3']
    """
    if not math.isfinite(gap):  # nobody asked, as of a completion without a reward
        return "t0"
    far = sum(abs(gap) >= bound for bound in (0.01, 0.1, 0.5))
    return f"{'up' if gap > 0 else 'down'}{far}" if far else "same"


def serve(root: Path, host: str, port: int) -> None:
    """Until Ctrl-C. Raises ValueError when the port is taken."""
    import uvicorn

    hosts = ("*",) if host in ANY else (*LOOPBACK, host, f"[{host}]")
    app = make_app(root, hosts)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise ValueError(f"--port {port} on {host}: {error.strerror}; choose another") from error
    where = f"[{host}]" if ":" in host else host
    print(f"http://{where}:{listening.getsockname()[1]}/ shows {root}; Ctrl-C ends", flush=True)
    if host not in LOOPBACK:
        print(f"anyone who reaches {host} can read the runs: there is no password", flush=True)
    config = uvicorn.Config(app, log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
