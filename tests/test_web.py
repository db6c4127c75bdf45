"""The viewer and the report over run folders made of hostile text, and one in a real browser."""

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders import group
from runs import ROOT, environment
from starlette.testclient import TestClient

from cluster import logprobs
from cluster.config import RunConfig
from cluster.timeline import chrome_trace, read_timeline
from cluster.web.app import make_app
from cluster.web.report import write_report
from cluster.web.shown import visible
from rollout.schema import read_table, to_table, write_table

HOSTILE = {
    "script": "<script>document.title='owned'</script><img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x="',
    "ansi": "\x1b[31mred\x1b]0;title\x07\x00",
    "turned": "abc\u202edef\u2066\u200b",
    "template": "{{ 7 * 7 }}{% raw %}",
    "long": "x" * (10 << 20),
}


def make_run(folder: Path, tiny: Path | None = None, *, steps: int = 3, groups: int = 4) -> Path:
    """A run folder as a run writes it, with every hostile text in some completion."""
    (folder / "rollouts").mkdir(parents=True)
    settings = {"rewards": {"verifiers": {"number": 1.0}}}
    if tiny is not None:
        settings["model"] = {"path": str(tiny / "model")}
    config = RunConfig.model_validate(settings).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps({"config": config, "deciding": {}}))
    texts = list(HOSTILE.values())
    rows, lines = [], []
    for step in range(1, steps + 1):
        made = [group(n, (0.0, 1.0, None), version=step - 1) for n in range(groups)]
        for n, scored in enumerate(made):
            ours = scored.group.completions
            ours = (replace(ours[0], text=texts[n % len(texts)]), *ours[1:])
            told = replace(scored.scores[2], note=texts[(n + 1) % len(texts)][:5000])
            inner = replace(scored.group, completions=ours)
            made[n] = replace(scored, group=inner, scores=(*scored.scores[:2], told))
        table = to_table(made, step=step, run="r", temperature=1.0)
        write_table(table, folder / "rollouts" / f"{step:06d}.arrow")
        rows.append({"step": step, "time": 1.0, "learner/lr": 0.1, "reward/mean": step / 10})
        lines.append({"who": "learner", "what": "update", "at": step * 2.0, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fault = {"step": 1, "who": HOSTILE["script"], "why": "x", "outcome": "replaced", "seconds": 1.0}
    (folder / "faults.jsonl").write_text(json.dumps(fault) + "\n")
    return folder


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name == "href" and tag == "a"]


@pytest.fixture
def client(tiny: Path, tmp_path: Path) -> TestClient:
    make_run(tmp_path / "runs" / "one", tiny, groups=len(HOSTILE))
    make_run(tmp_path / "runs" / "nested" / "two")
    return TestClient(make_app(tmp_path / "runs"), base_url="http://127.0.0.1")


def test_the_ratio_of_learner_and_sampler(client: TestClient, tmp_path: Path):
    run, page = tmp_path / "runs" / "one", "/run/one/step/1/group/0?colour=ratio"
    assert "did not record: learner.record_logprobs=true" in client.get(page).text
    table = read_table(run / "rollouts" / "000001.arrow")
    theirs = [np.array(row, dtype=np.float32) for row in table["behaviour_logprobs"].to_pylist()]
    theirs[0][0] += np.log(2.0)
    theirs[1][:] = np.nan  # without a reward: nobody was asked
    logprobs.write(run, 1, theirs)
    said = client.get(page).text
    assert said.count('class="up3"') == 1 and "ratio 2" in said and "did not record" not in said
    logprobs.write(run, 1, [each[:-1] for each in theirs])  # of a table that was replaced
    assert "did not record" in client.get(page).text


PAGES = (
    "/",
    "/run/one",
    "/run/one/step/2",
    "/run/one/step/2?sort=reward&falling=1",
    "/run/one/step/1/group/0",
    "/run/one/step/1/group/2?colour=version",
    "/run/one/step/1/group/5?colour=trainable",
    "/run/one/step/1/group/0?colour=ratio",
    "/run/one/prompt?id=test/1",
    "/run/one/search?q=onerror",
    "/run/one/search?outcome=unscorable",
    "/compare?a=one&b=nested/two&a_step=1&b_step=3",
)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_has_anything_that_a_completion_brought(page: str, client: TestClient):
    answer = client.get(page)
    assert answer.status_code == 200, answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    elements = Elements(answer.text)
    assert not {"script", "img", "iframe", "object"} & set(elements.tags)
    assert not {name for name in elements.attributes if name.startswith("on")}
    for character in ("\x1b", "\x00", "\x07", "\u202e", "\u2066", "\u200b"):
        assert character not in answer.text, f"{character!r} came through"
    assert len(answer.text) < 1_000_000, "a text of 10 MB is in the page"


def test_every_link_leads_somewhere(client: TestClient):
    seen, todo = set(), ["/"]
    while todo:
        page = todo.pop()
        if page in seen or len(seen) > 150:
            continue
        seen.add(page)
        answer = client.get(page)
        assert answer.status_code == 200, (page, answer.text)
        if answer.headers["Content-Type"].startswith("text/html"):
            todo += [str(answer.url.join(link)) for link in Elements(answer.text).links]
    assert any(page.endswith(".txt") for page in seen) and len(seen) > 40


def test_hostile_text_is_shown_as_what_it_is(client: TestClient):
    page = client.get("/run/one/step/1").text
    assert "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page
    assert "␛[31mred␛]0;title␇␀" in page and "abc⟨U+202E⟩def⟨U+2066⟩⟨U+200B⟩" in page


def test_a_long_completion_is_all_there_as_text(client: TestClient):
    answer = client.get("/run/one/step/1/5/0.txt")
    assert answer.text == HOSTILE["long"]
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("/run/three", "no run"),
        ("/run/../../etc", ""),
        ("/run/one/step/77", "no table of step 77"),
        ("/run/one/step/1/group/99", "no group 99"),
        ("/run/one/step/1?low=much", "is no number"),
        ("/run/one/step/1?outcome=good", "it is one of"),
        ("/run/one/step/1?page=x", ""),
        ("/run/one/prompt?id=nobody", "has the prompt"),
        ("/compare?a=one&b=one&a_step=1", "is no step"),
    ],
)
def test_what_is_not_there_is_said(page: str, said: str, client: TestClient):
    answer = client.get(page)
    assert answer.status_code == 404 and said in answer.text.replace("&#39;", "'")


def test_a_damaged_table_is_named_and_the_rest_is_shown(client: TestClient, tmp_path: Path):
    table = tmp_path / "runs" / "one" / "rollouts" / "000002.arrow"
    table.write_bytes(table.read_bytes()[:100])
    assert client.get("/run/one/step/2").status_code == 404
    assert client.get("/run/one").status_code == 200
    assert "test/1" in client.get("/run/one/prompt?id=test/1").text
    assert "step 3" in client.get("/run/one/search?q=onerror").text


def test_a_run_without_a_step_and_a_damaged_one_leave_the_others_alone(
    client: TestClient, tmp_path: Path
):
    for name, text in (("young", ""), ("broken", "{no json}\n")):
        folder = make_run(tmp_path / "runs" / name)
        (folder / "metrics.jsonl").write_text(text)
    page = client.get("/")
    assert page.status_code == 200
    assert {"/run/one", "/run/young", "/run/broken"} <= set(Elements(page.text).links)
    assert client.get("/run/young").status_code == 200
    assert client.get("/run/broken").status_code == 404


def test_another_name_than_this_machines_is_refused(client: TestClient):
    """Or a page of somebody else's could read runs through a name that leads here."""
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    for host in ("localhost:8700", "[::1]:8700"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host


def test_filters_let_through_what_they_say(client: TestClient):
    page = client.get("/run/one/step/1?low=0.5").text
    assert page.count('<div class="card">') == len(HOSTILE)  # the one of each group worth 1
    page = client.get("/run/one/step/1?outcome=unscorable&q=7").text
    assert page.count('<div class="card">') == len(HOSTILE)
    page = client.get("/run/one/step/1?low=0.5&high=0.6").text
    assert page.count('<div class="card">') == 0 and "0 groups" in page


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is no run folder and has none below it"):
        make_app(tmp_path)


def test_a_hundred_thousand_rollouts_show_their_first_page_in_two_seconds(tmp_path: Path):
    """40 steps of 2,500: what a page costs does not grow with the run."""
    folder = make_run(tmp_path / "large", steps=1)
    made = [group(n, (0.0, 1.0, 0.5, 0.0, 1.0)) for n in range(500)]
    table = to_table(made, step=1, run="r", temperature=1.0)
    for step in range(1, 41):
        write_table(table, folder / "rollouts" / f"{step:06d}.arrow")
    client = TestClient(make_app(folder), base_url="http://localhost")
    for page in ("/", "/run/large", "/run/large/step/40"):
        started = time.monotonic()
        assert client.get(page).status_code == 200
        assert time.monotonic() - started < 2.0, page


def test_a_report_needs_nothing_besides_itself(tmp_path: Path):
    folder, target, trace = make_run(tmp_path / "run"), tmp_path / "r.html", tmp_path / "t.json"
    write_report(folder, target, trace)
    page = target.read_text()
    elements = Elements(page)
    assert not {"script", "img", "link", "iframe"} & set(elements.tags)
    assert not {"src", "href"} & elements.attributes and "url(" not in page
    assert {"svg", "table", "style"} <= set(elements.tags)
    assert "Worst completions" in page and "&lt;script&gt;" in page and "\x1b" not in page
    events = json.loads(trace.read_text())
    assert events == chrome_trace(read_timeline(folder))
    bars = [event for event in events["traceEvents"] if event["ph"] == "X"]
    assert [(bar["name"], bar["ts"], bar["dur"]) for bar in bars] == [
        ("update", step * 2_000_000, 1_000_000) for step in (1, 2, 3)
    ]


def test_what_has_no_step_yet_has_no_report(tmp_path: Path):
    with pytest.raises(ValueError, match="is no run folder"):
        write_report(tmp_path, tmp_path / "r.html", None)
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no step in metrics"):
        write_report(folder, tmp_path / "r.html", None)


def test_invisible_characters_become_visible_and_others_stay():
    assert visible("plain ünï 中文\n\t") == "plain ünï 中文\n\t"
    assert visible("a\ufeffb\x7f\x85") == "a⟨U+FEFF⟩b␡⟨U+0085⟩"


def test_in_a_real_browser_nothing_of_a_completion_runs(tiny: Path, tmp_path: Path):
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    make_run(tmp_path / "one", tiny, groups=len(HOSTILE))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cluster", "view", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}/" in server.stdout.readline()
        for page, shows in (("/run/one/step/1", "document.title"), ("/run/one", "reward/mean")):
            dom = browse(f"http://127.0.0.1:{port}{page}", tmp_path / "profile")
            assert "<title>one" in dom and "owned</title>" not in dom
            assert shows in dom and "<script" not in dom
            assert 'class="card"' in dom or "<svg" in dom
    finally:
        server.terminate()
        server.wait(20)


def browse(address: str, profile: Path) -> str:
    """The page's elements as the browser has them, once scripts would have run."""
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = [f"--user-data-dir={profile}", "--virtual-time-budget=3000", address]
    done = subprocess.run([*chromium, *options], capture_output=True, text=True, timeout=120)
    return done.stdout
