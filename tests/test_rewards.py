"""Verifiers, the rubric, and the child process they run in."""

import json
import os
import time
from pathlib import Path

import pytest

from rewards import Attempt, RewardConfig, Rubric, find_verifier
from rewards.answers import as_number, final_answer, number, number_in_answer
from rewards.formats import think_answer, think_number
from rewards.score import BUILT_IN
from rewards.scorer import Scorer


def attempt(text: str, *, truncated: bool = False) -> Attempt:
    return Attempt(text=text, num_tokens=1, truncated=truncated)


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("The total is 42.", "42", 1.0),
        ("The total is 42.0", "42", 1.0),
        ("first 42, then 43", "42", 0.0),
        ("#### 1,234", "#### 1234", 1.0),
        ("so <answer>$12.50</answer>", "12.5", 1.0),
        ("<answer>3</answer> wait <answer> 4 </answer>", "4", 1.0),
        ("<answer>four</answer>", "4", 0.0),
        ("", "0", 0.0),
        ("-3", "3", 0.0),
        ("12abc", "12", 1.0),
        ("3.1415", "3.14", 0.0),
    ],
)
def test_number(completion: str, answer: str, expected: float):
    assert number(completion, answer) == expected


def test_number_in_answer_looks_nowhere_else():
    assert number_in_answer("it is 42", "42") == 0.0
    assert number_in_answer("<answer>42</answer>", "42") == 1.0
    assert number_in_answer("<answer>42", "42") == 0.0


def test_a_reference_that_is_no_number_is_our_failure():
    score = Rubric(weights={"number": 1.0}).score("about forty", attempt("40"))
    assert score.reward is None
    assert "about forty" in score.note


@pytest.mark.parametrize(
    ("completion", "any_answer", "numeric"),
    [
        ("<think>a</think><answer>1</answer>", 1.0, 1.0),
        ("<think></think>\n<answer>x</answer>\n", 1.0, 0.0),
        ("<think>a</think><answer> </answer>", 0.0, 0.0),
        ("<answer>1</answer><think>a</think>", 0.0, 0.0),
        ("<think>a</think><answer>1</answer> bye", 0.0, 0.0),
        ("<think>a</think><answer>1</answer><answer>1</answer>", 0.0, 0.0),
        ("<think><think>a</think><answer>1</answer>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_formats(completion: str, any_answer: float, numeric: float):
    assert think_answer(completion, "") == any_answer
    assert think_number(completion, "") == numeric


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    "text",
    ["", "42", "42 42", "x" * 100_000, "é🙂\x00", "<answer>", "\\boxed{", "9" * 5_000, "####"],
    ids=["empty", "answer", "twice", "noise", "unicode", "open", "boxed", "digits", "hashes"],
)
def test_built_ins_return_a_finite_value_quickly_on_anything(name: str, text: str):
    started = time.monotonic()
    assert 0.0 <= find_verifier(name)(text, "42") <= 1.0
    assert time.monotonic() - started < 2.0


def test_numbers_are_exact():
    assert as_number("0.1") == as_number(".10")
    assert as_number("1e5") is None
    assert final_answer("no digits") is None


def test_the_rubric_weighs_parts_and_keeps_them_raw():
    rubric = Rubric(weights={"number_in_answer": 1.0, "think_number": 0.2})
    score = rubric.score("3", attempt("<think>1+2=3</think><answer>3</answer>"))
    assert score.reward == 1.2
    assert score.parts == {"number_in_answer": 1.0, "think_number": 1.0}


STEPS = {"recipes.demo:right_steps": 2.0, "number": 1.0}
THOUGHT = "<think>7+3=10\n10*2=21</think><answer>20</answer>"


def test_a_verifier_may_judge_steps():
    score = Rubric(weights=STEPS).score("20", attempt(THOUGHT))
    ends = (THOUGHT.index("\n") + 1, THOUGHT.index("</think>"), len(THOUGHT))
    judged = (*zip(ends, (2.0, 0.0, 2.0), strict=True), (len(THOUGHT), 1.0))
    assert score.steps == tuple(sorted(judged)), "weighted, in order; the rest at the end"
    assert score.parts["recipes.demo:right_steps"] == pytest.approx(2 / 3)
    assert score.reward == pytest.approx(2 * 2 / 3 + 1)
    with_child = Scorer(RewardConfig(verifiers=STEPS))
    try:
        assert with_child.score("20", [attempt(THOUGHT)]) == [score], "the same through the pipe"
    finally:
        with_child.close()


def test_a_step_that_is_no_number_is_our_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "odd_steps.py").write_text("def judge(text, answer): return [(1, float('nan'))]\n")
    monkeypatch.syspath_prepend(tmp_path)
    score = Rubric(weights={"odd_steps:judge": 1.0}).score("", attempt("x"))
    assert score.reward is None and "odd_steps:judge" in score.note


def test_long_completions_pay_as_they_near_the_limit():
    rubric = Rubric(weights={"number": 1.0}, overlong=(100, 20, 0.5))
    found = {}
    for length in (10, 80, 90, 100):
        score = rubric.score("7", Attempt(text="7", num_tokens=length, truncated=False))
        found[length] = (score.parts["overlong"], score.reward)
    assert found == {10: (0, 1), 80: (0, 1), 90: (-0.5, 0.75), 100: (-1, 0.5)}


def test_truncated_completions_may_be_worth_nothing():
    cut = attempt("<think></think><answer>3</answer>", truncated=True)
    assert Rubric(weights={"number": 1.0}).score("3", cut).reward == 1.0
    assert Rubric(weights={"number": 1.0}, truncated="zero").score("3", cut).reward == 0.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nmber", "not a built-in verifier (number, number_in_answer"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("json:no_such_function", "module 'json' has no function 'no_such_function'"),
        ("json:__name__", "is a str, no function"),
    ],
)
def test_unknown_verifiers_are_refused_by_name(name: str, says: str):
    with pytest.raises(ValueError, match=r"rewards\.verifiers") as error:
        find_verifier(name)
    assert says in str(error.value)


HOSTILE = """
import ctypes, os, subprocess, sys, time
def verify(completion, answer):
    if completion == "hang":
        while True: pass
    if completion == "spawn":
        subprocess.Popen(["sleep", "300"])
        time.sleep(300)
    if completion == "exit":
        os._exit(3)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "raise":
        raise RuntimeError("no idea")
    if completion == "nan":
        return float("nan")
    if completion == "memory":
        return float(len(bytearray(8 << 30)))
    if completion == "print":
        print('{"reward": 9, "parts": {}, "note": ""}'); sys.stdout.flush()
    return 1.0
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hostile_verifier.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RewardConfig(verifiers={"hostile_verifier:verify": 1.0}, timeout=1.0, memory_gib=2.0)
    scorer = Scorer(config)
    yield scorer
    scorer.close()


def test_siblings_of_a_hostile_completion_are_scored_all_the_same(hostile: Scorer):
    texts = ["good", "hang", "good", "exit", "raise", "segfault", "nan", "memory", "print", "good"]
    scores = hostile.score("", [attempt(text) for text in texts])
    found = dict(
        zip([f"{i}:{t}" for i, t in enumerate(texts)], [s.reward for s in scores], strict=True)
    )
    assert found == {
        "0:good": 1.0, "1:hang": 0.0, "2:good": 1.0, "3:exit": None, "4:raise": None,
        "5:segfault": None, "6:nan": None, "7:memory": None, "8:print": 1.0, "9:good": 1.0,
    }  # fmt: skip
    assert scores[1].parts == {"timeout": 1.0}
    assert "no idea" in scores[4].note
    assert "MemoryError" in scores[7].note


def test_scoring_leaves_no_process_and_no_file_descriptor(hostile: Scorer):
    before = len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    hostile.score("", [attempt("spawn"), attempt("hang"), attempt("exit")])
    assert time.monotonic() - started < 10
    assert len(os.listdir("/proc/self/fd")) == before
    children = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x00300" in _read(path)
    ]
    assert not children, "what a verifier started outlived its child"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_verifier_that_cannot_be_loaded_is_an_error_at_the_start():
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        Scorer(RewardConfig(verifiers={"nowhere:f": 1.0}))


def test_no_reference_case_about_a_number_is_scored_too_kindly(shared: Path):
    """Of the reference cases whose gold is a plain number: a wrong prediction never gets the
    point, and a right one that is a plain number, too, always does."""
    path = shared / "golden" / "verifier_cases.jsonl"
    cases = [json.loads(line) for line in path.read_text().splitlines()]
    numeric = [case for case in cases if as_number(case["gold"]) is not None]
    assert len(numeric) > 30
    kind = [c for c in numeric if not c["expected"] and number(c["prediction"], c["gold"])]
    plain = [c for c in numeric if c["expected"] and as_number(c["prediction"]) is not None]
    harsh = [c for c in plain if not number(c["prediction"], c["gold"])]
    assert not kind, [(c["gold"], c["prediction"]) for c in kind]
    assert not harsh, [(c["gold"], c["prediction"]) for c in harsh]
