"""Verifiers as plain functions: where an answer stands, what equals it, what shape it has."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Attempt, RewardConfig, Task
from rewards.answers import as_number, boxed, choice, final_answer, number, number_in_answer, text
from rewards.cases import main, read, scored
from rewards.formats import (
    json_schema,
    language,
    length,
    regex,
    repetition,
    tags,
    think_answer,
    think_number,
)
from rewards.maths import final_expression
from rewards.maths import math as same_maths
from rewards.scorer import Scorer
from rewards.verifiers import BUILT_IN, load


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
        (r"thus \boxed{7}, not 8", "7", 1.0),
        (r"thus \boxed{7} then \boxed{8}", "7", 0.0),
        ("<think>it is 7</think> It is 8.", "7", 0.0),
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


def test_numbers_are_exact():
    assert as_number("0.1") == as_number(".10")
    assert as_number("1e5") is None
    assert final_answer("no digits") is None


def test_boxes_may_be_nested_and_unterminated():
    said = r"\boxed{\text{a \boxed{1} b}} and \boxed{\frac{1}{2}} but \boxed{3"
    assert [content for *_, content in boxed(said)] == [r"\text{a \boxed{1} b}", r"\frac{1}{2}"]
    assert boxed("\\boxed{" * 5000) == []


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("The answer is (B).", "B", 1.0),
        ("The answer is B", "B. Paris", 1.0),
        (r"\boxed{\text{C}}", "(C)", 1.0),
        ("<answer>d) 4</answer>", "D", 1.0),
        ("I think A. No: the answer is: **B**", "A", 0.0),
        ("Reasoning...\nC", "C", 1.0),
        ("A dog has four legs", "A", 0.0),
        ("Answer: Because of that", "B", 0.0),
        ("", "A", 0.0),
    ],
)
def test_choice(completion: str, answer: str, expected: float):
    assert choice(completion, answer) == expected


def test_a_reference_that_names_no_option_is_our_failure():
    with pytest.raises(ValueError, match="names none of ABCD"):
        choice("B", "Paris")
    assert choice("The answer is F", "F", letters="ABCDEF") == 1.0


def test_text_looks_past_case_punctuation_and_space():
    assert text("<answer> The  Nile! </answer>", "the nile") == 1.0
    assert text(r"\boxed{\text{Nile}}", "Nile.") == 1.0
    assert text("The answer is Nile.\nBye", "nile") == 1.0
    assert text("It is the Amazon", "the nile") == 0.0


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
    renamed = completion.replace("think>", "reasoning>")
    assert tags(renamed, "", tags=["reasoning", "answer"]) == any_answer


def test_json_is_checked_against_a_schema():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert json_schema('{"a": 1}', "", schema=schema) == 1.0
    assert json_schema('Here:\n```json\n{"a": 1}\n```', "", schema=schema) == 1.0
    assert json_schema('<answer>{"a": 1}</answer>', json.dumps(schema)) == 1.0
    for wrong in ('{"a": "1"}', "{}", "nothing", '{"a": NaN}', "[" * 5000):
        assert json_schema(wrong, "", schema=schema) == 0.0, wrong
    with pytest.raises(ValueError, match="no JSON schema"):
        json_schema("{}", "not a schema")
    with pytest.raises(ValueError, match="refers to what is not in it"):
        json_schema("{}", "", schema={"$ref": "http://127.0.0.1:9/schema.json"})


def test_regex_language_repetition_and_length():
    assert regex("abc 12", "", pattern=r"\d+") == 1.0
    assert regex("abc 12", "", pattern=r"\d+", whole=True) == 0.0
    assert regex("abc", r"^a.c$") == 1.0
    with pytest.raises(ValueError, match="is no regular expression"):
        regex("a", "(")
    english, german = "The weather is nice today.", "Das Wetter ist heute sehr schön."
    assert language(english, "") == 1.0
    assert language(german, "") == 0.0
    assert language(german, "", language="de") == 1.0
    assert 0.3 < language(f"{english} {german}", "") < 0.7
    assert language("$x + y$ `print(x)`", "") == 1.0, "formulas and code are no language"
    with pytest.raises(ValueError, match="is none of"):
        language("a", "", language="xx")
    assert repetition("a b c d e f", "") == 0.0
    assert repetition("no no no no no no no no", "") < -0.7
    found = [length("", n, shortest=10, longest=100, slack=20) for n in (0, 5, 10, 100, 110, 500)]
    assert found == [-0.5, -0.25, 0.0, 0.0, -0.5, -1.0]


# -- maths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"so \boxed{\frac{3}{6}}", "1/2", 1.0),
        (r"\boxed{x^2 - 1}", "(x-1)(x+1)", 1.0),
        (r"\boxed{(1, 2]}", "(1,2]", 1.0),
        (r"\boxed{(1, 2)}", "(1,2]", 0.0),
        (r"\boxed{\{3, 1\}}", r"\{1, 3\}", 1.0),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1.0),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1.0),
        ("<think>\\boxed{7}</think> The answer is 8.", "7", 0.0),
        ("<answer>1/3</answer>", r"\frac{1}{3}", 1.0),
        (r"\boxed{0.3333}", r"\frac{1}{3}", 1.0),
        (r"\boxed{0.33}", r"\frac{1}{3}", 0.0),
        ("I have no idea", "7", 0.0),
        ("", "7", 0.0),
    ],
)
def test_maths(completion: str, answer: str, expected: float):
    assert same_maths(completion, answer) == expected


def test_the_final_expression_is_what_is_said_last():
    assert final_expression(r"\boxed{5} so the final answer is 6") == (
        r"\boxed{5} so the final answer is 6"
    ), "left to math-verify, which takes what follows"
    assert final_expression("The angle is [90].") == "90"
    assert final_expression("#### 3\nno\n#### 4") == "4"


KNOWN_MISSES = {66: "a matrix given to two decimals"}
"""Lines of the shared cases that come out wrong; docs/rewards.md lists them."""


def test_the_reference_cases_come_out_right_but_for_the_known_ones(shared: Path):
    """At least what math-verify itself gets right, and no regression on any."""
    path = shared / "golden" / "verifier_cases.jsonl"
    rows = {n: json.loads(t) for n, t in enumerate(path.read_text().splitlines(), start=1)}
    missed = {
        case.line
        for case, score in scored(read(path), "math", 10.0)
        if score.outcome != "scored" or (score.reward == 1.0) != case.expected
    }
    theirs = {n for n, r in rows.items() if r["math_verify"]["suite"] != r["expected"]}
    assert missed == set(KNOWN_MISSES), {n: rows[n] for n in missed ^ set(KNOWN_MISSES)}
    assert missed <= theirs, "a regression against math-verify"


def test_the_command_prints_misses_and_the_count_last(tmp_path: Path):
    cases = [
        {"gold": "2", "prediction": r"\boxed{2}", "expected": True},
        {"gold": "2", "prediction": r"\boxed{3}", "expected": True},
        {"gold": "2", "prediction": "9**9**9**9", "expected": False},
        {"gold": "", "prediction": "2", "expected": False},
    ]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(map(json.dumps, cases)))
    done = subprocess.run(
        [sys.executable, "-m", "rewards.cases", str(file), "--timeout", "2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("miss, line 2: expected 1, got 0: gold '2'")
    assert any("line 4: expected 0, got unscorable (math: ValueError" in line for line in lines)
    assert re.fullmatch(r"[12] of 4 right, [23] missed \(math\)", lines[-1]), lines[-1]
    file.write_text('{"gold": 1}')
    assert main([str(file)]) == 2


@pytest.mark.parametrize("verifier", ["number", "math"])
def test_gsm8k_gold_solutions_score_one_and_perturbed_ones_zero(shared: Path, verifier: str):
    rows = [json.loads(t) for t in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    assert len(rows) == 1319
    function = BUILT_IN[verifier]
    right = wrong = 0
    for at, row in enumerate(rows):
        head, _, last = row["answer"].rpartition("#### ")
        value = int(last.replace(",", ""))
        off = (1, -1, 10, -value - 1 if value > 0 else 3)[at % 4]
        right += function(row["answer"], row["answer"]) == 1.0
        wrong += function(f"{head}#### {value + off}", row["answer"]) == 0.0
    assert (right, wrong) == (1319, 1319)


@pytest.mark.parametrize(
    ("verifier", "completion", "answer", "expected"),
    [
        (number, "The answer is \u22125.", "5", 0.0),
        (number, "The answer is \u22125.", "-5", 1.0),
        (number, "The answer is 1/2", "2", 0.0),
        (number, "10^2", "2", 0.0),
        (number, "<think><answer>7</answer></think> It is 8.", "7", 0.0),
        (number, "<think><answer>7</answer></think> It is 8.", "8", 1.0),
        (same_maths, "<think><answer>7</answer></think> It is 8.", "8", 1.0),
        (same_maths, "The answer is 42 [1].", "42", 1.0),
        (number, r"<answer>\boxed{42}</answer>", "42", 1.0),
        (number, r"\boxed{\$42}", "42", 1.0),
        (number, r"\boxed{42\text{ cm}}", "42", 1.0),
        (number, r"\boxed{18{,}000}", "18000", 1.0),
        (number, "#### 42 dollars", "42", 1.0),
        (number, "#### 42<|im_end|>", "42", 1.0),
        (number, "#### Step 3: Conclusion\nSo the answer is 42.", "42", 1.0),
        (same_maths, "#### Step 3: Conclusion\nSo the answer is 42.", "42", 1.0),
        (same_maths, r"\boxed{1,2}", "1,2", 1.0),
        (same_maths, r"\boxed{1.2}", "1,2", 0.0),
        (same_maths, r"\boxed{3,5,7}", "3,5,7", 1.0),
        (same_maths, r"\boxed{12.13}", "12,13", 0.0),
        (same_maths, r"\boxed{\$36}", r"\$36", 1.0),
        (same_maths, r"\boxed{36}", r"\$36", 1.0),
        (same_maths, r"\boxed{\text{Navin and Luka}}", r"\text{Navin and Luka}", 1.0),
        (same_maths, r"\boxed{\angle ABC}", r"\angle ABC", 1.0),
        (same_maths, r"\boxed{x=5}", "5", 1.0),
        (same_maths, r"\boxed{90^\circ}", "90", 1.0),
        (same_maths, r"\boxed{1\frac{1}{2}}", "3/2", 1.0),
        (same_maths, r"\boxed{50\%}", r"50\%", 1.0),
        (same_maths, r"\boxed{2.5\times 10^3}", "2500", 1.0),
        (same_maths, r"\boxed{-\frac{3}{4}}", "-0.75", 1.0),
        (choice, "the best answer is B because…", "B", 1.0),
        (choice, "Therefore, B is correct.", "B", 1.0),
        (choice, "The correct option is (C).", "C", 1.0),
        (choice, "I choose option B.", "B", 1.0),
        (choice, "Answer: C - Paris", "C", 1.0),
        (choice, 'The answer is "B"', "B", 1.0),
        (choice, "`B`", "B", 1.0),
        (choice, "B!", "B", 1.0),
        (choice, "B; because", "B", 1.0),
        (choice, "B<|im_end|>", "B", 1.0),
        (choice, "The answer is A, B, C, D", "A", 0.0),
        (text, "The answer is Paris. It is the capital.", "Paris", 1.0),
        (text, "The answer is Paris. This result isn't surprising.", "Paris", 1.0),
        (text, "C#", "C", 0.0),
        (text, "!!!", "?", 0.0),
    ],
)
def test_answers_as_models_write_them(verifier: Any, completion: str, answer: str, expected: float):
    assert verifier(completion, answer) == expected


# -- anything at all ------------------------------------------------------------------------------

OPTIONS = {"json": {"schema": {"type": "object"}}, "regex": {"pattern": "a+b"}}
REFERENCE = {"choice": "B", "code": '[{"stdin": "", "stdout": "x"}]'}
TEXTUAL = [name for name in BUILT_IN if name not in ("math", "code")]
PIECES = [
    "\\boxed{", "}", "{", "<answer>", "</answer>", "<think>", "</think>", "####", "42", "-",
    "1,000",
    "\\frac{1}{2}", "\\sqrt", "$", "\\(", "\\)", " ", "\n", "=", "x", "^", "(B)", "the answer is ",
    "%", ".5", "é🙂", "\x00", "```", "[", "]", '"a": ', "\\begin{pmatrix}", "&",
    "\\\\", "final answer is",
]  # fmt: skip
anything = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
)


def verifier(name: str):
    return load(name, options=OPTIONS.get(name))


@settings(max_examples=1_000, deadline=None)
@given(st.lists(anything, min_size=12, max_size=12))
def test_ten_thousand_inputs_are_read_without_a_failure(texts: list[str]):
    for said in texts:
        attempt = Attempt(text=said, num_tokens=len(said), truncated=False)
        for name in TEXTUAL:
            verdict = VERIFIERS[name].one(Task(answer=REFERENCE.get(name, "42")), attempt)
            assert verdict is not None and verdict.outcome == "scored", (name, verdict)
            assert math.isfinite(verdict.value) and -1.0 <= verdict.value <= 1.0


VERIFIERS = {name: verifier(name) for name in TEXTUAL}


@pytest.mark.parametrize("name", TEXTUAL)
@pytest.mark.parametrize(
    "said",
    [
        "x" * 100_000,
        "9" * 50_000,
        "\\boxed{" * 10_000,
        "<answer>" * 10_000,
        "a " * 50_000,
        "(" * 50_000,
        "\\[" * 50_000,
        "``` \n" * 20_000,
    ],
    ids=["noise", "digits", "boxes", "tags", "words", "brackets", "formulas", "fences"],
)
def test_long_completions_take_no_long_time(name: str, said: str):
    started = time.monotonic()
    attempt = Attempt(text=said, num_tokens=1, truncated=False)
    verdict = VERIFIERS[name].one(Task(answer=REFERENCE.get(name, "42")), attempt)
    assert verdict is not None and verdict.outcome == "scored", verdict
    assert time.monotonic() - started < 2.0


def fuzz_maths(groups: int, size: int, timeout: float) -> dict[str, int]:
    """Outcomes of `groups * size` answers, each against its own reference, in a killable child."""
    outcomes: dict[str, int] = {}
    scorer = Scorer(RewardConfig(verifiers={"math": 1.0}, timeout=timeout))  # type: ignore[arg-type]

    @settings(max_examples=groups, deadline=None, database=None)
    @given(
        st.lists(anything, min_size=size, max_size=size), st.sampled_from(["42", "x+1", "(1,2)"])
    )
    def score(texts: list[str], answer: str) -> None:
        attempts = [Attempt(text=said, num_tokens=1, truncated=False) for said in texts]
        started = time.monotonic()
        for attempt, found in zip(
            attempts, scorer.score(Task(answer=answer), attempts), strict=True
        ):
            assert found.outcome in ("scored", "timeout"), (attempt.text, answer, found)
            assert found.reward in (0.0, 1.0)
            outcomes[found.outcome] = outcomes.get(found.outcome, 0) + 1
        assert time.monotonic() - started < (timeout + 1) * size

    try:
        score()
    finally:
        scorer.close()
    return outcomes


def test_maths_is_scored_or_stopped_whatever_is_said():
    outcomes = fuzz_maths(groups=100, size=20, timeout=2.0)
    assert outcomes["scored"] > 1_900, outcomes


@pytest.mark.slow
def test_ten_thousand_answers_in_maths_are_scored_or_stopped():
    outcomes = fuzz_maths(groups=500, size=20, timeout=2.0)
    print(outcomes)
    assert sum(outcomes.values()) >= 10_000
