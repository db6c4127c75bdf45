"""The rubric, and the children that verifiers run in."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rewards import Attempt, RewardConfig, Rubric, Score, Task, Verdict
from rewards.packed import (
    frame_request,
    pack_groups,
    read_request,
    unpack_groups,
    unpack_verdicts,
)
from rewards.scorer import Scorer
from rewards.verifiers import load

ROOT = Path(__file__).resolve().parent.parent


def attempt(text: str, *, truncated: bool = False, tokens: int = 1) -> Attempt:
    return Attempt(text=text, num_tokens=tokens, truncated=truncated)


def judged(weights: dict[str, float], answer: str, tried: Attempt, **options: object) -> Score:
    """A score without a child."""
    verdicts = {name: load(name).one(Task(answer=answer), tried) for name in weights}
    return Rubric(weights=weights, **options).score(tried, verdicts)  # type: ignore[arg-type]


# -- the rubric -----------------------------------------------------------------------------------


def test_the_rubric_weighs_parts_and_keeps_them_raw():
    weights = {"number_in_answer": 1.0, "think_number": 0.2}
    score = judged(weights, "3", attempt("<think>1+2=3</think><answer>3</answer>"))
    assert score.reward == 1.2
    assert score.parts == {"number_in_answer": 1.0, "think_number": 1.0}
    assert set(score.seconds) == set(weights)


@pytest.mark.parametrize(
    ("outcomes", "outcome", "reward"),
    [
        (("scored", "scored"), "scored", 2.0),
        (("scored", "unscorable"), "unscorable", None),
        (("timeout", "scored"), "timeout", 0.0),
        (("tampered", "scored"), "tampered", 0.0),
        (("timeout", "unscorable"), "timeout", 0.0),
        (("tampered", "unscorable"), "tampered", 0.0),
        (("tampered", "timeout"), "tampered", 0.0),
    ],
)
def test_four_outcomes_and_which_of_two_counts(outcomes: tuple, outcome: str, reward: float | None):
    """The completion's own fault outweighs ours: making a verifier fail is no way out of it."""
    verdicts = {
        name: Verdict(value=1.0, outcome=each, note=f"why {each}")
        for name, each in zip("ab", outcomes, strict=True)
    }
    score = Rubric(weights={"a": 1.0, "b": 1.0}).score(attempt("x"), verdicts)
    assert (score.outcome, score.reward) == (outcome, reward)
    assert score.faults == {n: v.outcome for n, v in verdicts.items() if v.outcome != "scored"}
    assert f"why {outcome}" in score.note


def test_a_verifier_that_does_not_apply_is_left_out():
    rubric = Rubric(weights={"a": 1.0, "b": 1.0})
    score = rubric.score(attempt("x"), {"a": Verdict(value=0.5), "b": None})
    assert (score.reward, score.parts) == (0.5, {"a": 0.5})
    assert rubric.score(attempt("x"), {"a": None, "b": None}).outcome == "unscorable"


def test_a_reference_that_is_no_number_is_our_failure():
    score = judged({"number": 1.0}, "about forty", attempt("40"))
    assert score.outcome == "unscorable" and score.reward is None
    assert "about forty" in score.note


def test_what_is_only_logged_decides_nothing():
    rubric = Rubric(weights={"a": 1.0, "log": 0.0})
    failed = Verdict(value=0.0, outcome="unscorable", note="down")
    score = rubric.score(attempt("x"), {"a": Verdict(value=1.0), "log": failed})
    assert (score.outcome, score.reward) == ("scored", 1.0)
    score = rubric.score(attempt("x"), {"a": None, "log": Verdict(value=3.0)})
    assert score.outcome == "unscorable"


def test_further_figures_are_logged_and_not_weighed():
    verdict = Verdict(value=1.0, parts={"passed": 0.5})
    score = Rubric(weights={"code": 2.0}).score(attempt("x"), {"code": verdict})
    assert (score.reward, score.parts) == (2.0, {"code": 1.0, "code/passed": 0.5})


STEPS = {"recipes.demo:right_steps": 2.0, "number": 1.0}
THOUGHT = "<think>7+3=10\n10*2=21</think><answer>20</answer>"


def test_a_verifier_may_judge_steps():
    score = judged(STEPS, "20", attempt(THOUGHT))
    ends = (THOUGHT.index("\n") + 1, THOUGHT.index("</think>"), len(THOUGHT))
    steps = (*zip(ends, (2.0, 0.0, 2.0), strict=True), (len(THOUGHT), 1.0))
    assert score.steps == tuple(sorted(steps)), "weighted, in order; the rest at the end"
    assert score.parts["recipes.demo:right_steps"] == pytest.approx(2 / 3)
    assert score.reward == pytest.approx(2 * 2 / 3 + 1)
    with_child = Scorer(RewardConfig.model_validate({"verifiers": STEPS}))
    try:
        [found] = with_child.score(Task(answer="20"), [attempt(THOUGHT)])
        assert found == score, "the same through the pipe"
    finally:
        with_child.close()


def test_long_completions_pay_as_they_near_the_limit():
    found = {}
    for length in (10, 80, 90, 100):
        score = judged({"number": 1.0}, "7", attempt("7", tokens=length), overlong=(100, 20, 0.5))
        found[length] = (score.parts["overlong"], score.reward)
    assert found == {10: (0, 1), 80: (0, 1), 90: (-0.5, 0.75), 100: (-1, 0.5)}


def test_truncated_completions_may_be_worth_nothing():
    cut = attempt("<think></think><answer>3</answer>", truncated=True)
    assert judged({"number": 1.0}, "3", cut).reward == 1.0
    assert judged({"number": 1.0}, "3", cut, truncated="zero").reward == 0.0


# -- the children ---------------------------------------------------------------------------------

HOSTILE = """
import ctypes, os, subprocess, sys, time
def verify(completion, answer):
    if completion.startswith("sleep"):
        time.sleep(float(completion[5:]))
    if completion == "hang":
        while True: pass
    if completion == "spawn":
        subprocess.Popen(["sleep", "301"])
        time.sleep(300)
    if completion == "daemon":
        subprocess.Popen(["sleep", "301"], start_new_session=True)
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
        print('{"items": [[0, {}]], "end": true}'); sys.stdout.flush()
    return 1.0
def count(completions, **_):
    return [float(len(completions))] * len(completions)
def whole_group(completions, **_):
    if "hang the group" in completions:
        while True: pass
    return [float(len(set(completions)))] * len(completions)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_verifier.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))


def scorer(timeout: float = 1.0, *verifiers: str, **options: object) -> Scorer:
    names = verifiers or ("hostile_verifier:verify",)
    return Scorer(
        RewardConfig.model_validate(
            {
                "verifiers": dict.fromkeys(names, 1.0),
                "timeout": timeout,
                "memory_gib": 2.0,
                **options,
            }
        )
    )


def outcomes(scorer: Scorer, *texts: str) -> list[tuple[str, float | None]]:
    scores = scorer.score(Task(answer=""), [attempt(text) for text in texts])
    return [(score.outcome, score.reward) for score in scores]


def test_siblings_of_a_hostile_completion_are_scored_all_the_same(module: None):
    hostile = scorer()
    texts = ["good", "hang", "good", "exit", "raise", "segfault", "nan", "memory", "print", "good"]
    scores = hostile.score(Task(answer=""), [attempt(text) for text in texts])
    hostile.close()
    found = {f"{i}:{t}": s.reward for i, (t, s) in enumerate(zip(texts, scores, strict=True))}
    assert found == {
        "0:good": 1.0, "1:hang": 0.0, "2:good": 1.0, "3:exit": None, "4:raise": None,
        "5:segfault": None, "6:nan": None, "7:memory": None, "8:print": 1.0, "9:good": 1.0,
    }  # fmt: skip
    assert scores[1].outcome == "timeout"
    assert "took more than 1 s" in scores[1].note
    assert "no idea" in scores[4].note
    assert "MemoryError" in scores[7].note


def test_a_verifier_sees_all_siblings(module: None):
    both = scorer(0.5, "hostile_verifier:whole_group", "hostile_verifier:verify")
    assert outcomes(both, "a", "b", "a") == [("scored", 3.0)] * 3
    hung = outcomes(both, "a", "hang the group")
    assert hung == [("unscorable", None)] * 2, "nobody's fault in particular"
    assert outcomes(both, "a", "b") == [("scored", 3.0)] * 2
    both.close()


def test_a_pool_is_not_poisoned_by_hung_items(module: None):
    """Four hung ones per worker, then a correct one scores within 2 s."""
    hostile = scorer(0.3)
    for _ in range(4):
        assert outcomes(hostile, "hang") == [("timeout", 0.0)]
    started = time.monotonic()
    assert outcomes(hostile, "good") == [("scored", 1.0)]
    assert time.monotonic() - started < 2.0
    hostile.close()


def test_a_group_that_hangs_keeps_no_other_waiting(module: None):
    hostile = scorer(4.0)
    slow = threading.Thread(target=outcomes, args=(hostile, "sleep3.5"))
    slow.start()
    time.sleep(0.1)
    started = time.monotonic()
    assert outcomes(hostile, "good", "good") == [("scored", 1.0)] * 2
    assert time.monotonic() - started < 1.5
    slow.join()
    hostile.close()


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *children_of(child)]
    return found


def test_two_thousand_hostile_scorings_leave_files_and_processes_as_they_were(module: None):
    hostile = scorer(0.02)
    kinds = ["exit", "raise", "segfault", "hang", "nan"]
    assert outcomes(hostile, "good") == [("scored", 1.0)]
    files, processes = len(os.listdir("/proc/self/fd")), len(children_of(os.getpid()))
    found: Counter[str] = Counter()
    for _ in range(100):
        for outcome, _ in outcomes(hostile, *(kinds * 4)):
            found[outcome] += 1
    assert sum(found.values()) == 2_000
    assert found["timeout"] >= 400 and found["scored"] == 0, found
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(children_of(os.getpid())) == processes
    hostile.close()
    assert len(os.listdir("/proc/self/fd")) < files


def sleepers() -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sleep\x00301" in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def test_what_a_verifier_started_ends_with_its_child(module: None):
    hostile = scorer(0.5)
    assert outcomes(hostile, "spawn") == [("timeout", 0.0)]
    assert not sleepers()
    hostile.close()


def test_whatever_kills_the_actor_ends_its_children(module: None, tmp_path: Path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rewards import *\nfrom rewards.scorer import Scorer\n"
        "s = Scorer(RewardConfig(verifiers={'hostile_verifier:verify': 1.0}, timeout=60))\n"
        "print('up', flush=True)\n"
        "s.score(Task(answer=''), [Attempt(text='spawn', num_tokens=1, truncated=False)])\n"
    )
    actor = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert actor.stdout is not None and actor.stdout.readline() == b"up\n"
    deadline = time.monotonic() + 10
    while not sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = children_of(actor.pid)
    assert left and sleepers()
    actor.kill()
    actor.wait()
    actor.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]
    assert not sleepers()


def test_a_nursery_that_dies_is_replaced(module: None):
    hostile = scorer()
    nursery = hostile._nursery._process.pid
    os.kill(nursery, 9)
    time.sleep(0.2)
    assert outcomes(hostile, "good", "exit", "good") == [
        ("scored", 1.0),
        ("unscorable", None),
        ("scored", 1.0),
    ], "the child that died with it is nobody's fault"
    hostile.close()


def test_a_scorer_closes_at_once_whatever_its_children_do(module: None):
    for texts in ((), ("good",), ("hang",)):
        hostile = scorer(0.2)
        if texts:
            outcomes(hostile, *texts)
        started = time.monotonic()
        hostile.close()
        assert time.monotonic() - started < 3.0


def test_what_left_the_childs_session_ends_as_well(module: None):
    hostile = scorer(0.5)
    assert outcomes(hostile, "daemon") == [("timeout", 0.0)]
    deadline = time.monotonic() + 2
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers()
    hostile.close()


def test_one_hung_verifier_of_groups_does_not_take_the_other_along(module: None):
    names = ("hostile_verifier:whole_group", "hostile_verifier:count")
    both = Scorer(RewardConfig.model_validate(
        {"verifiers": {names[0]: 1.0, names[1]: 1.0}, "timeout": 0.5}
    ))  # fmt: skip
    found = both.verdicts(Task(answer=""), [attempt("hang the group"), attempt("b")])
    both.close()
    for verdicts in found:
        assert verdicts[names[0]].outcome == "unscorable"  # type: ignore[union-attr]
        assert verdicts[names[1]].outcome == "scored"  # type: ignore[union-attr]


def test_a_parcel_holds_what_was_put_in():
    tried = [
        Attempt(text=f"{n}", num_tokens=n, truncated=n in (1, 3), token_ids=tuple(range(n)))
        for n in range(4)
    ]
    task = Task(answer="4", prompt="2 + 2", source="sums", extra={"level": 2})
    parcel = pack_groups([(task, tried), (Task(answer=""), [])], lambda each: not each.truncated)
    assert (parcel.sizes, parcel.wanted) == ([4, 0], [[0, 2], []])
    (found, columns), (_, none) = unpack_groups(parcel.data)
    assert found == task
    assert [replace(a, token_ids=tuple(a.token_ids)) for a in columns.attempts()] == tried
    assert none.attempts() == []
    assert columns.only([3, 0]).attempts() == [columns.attempt(3), columns.attempt(0)]
    asked = [[0, 2], [], [7]]
    assert read_request(frame_request(5, asked, b"rest")[4:]) == (5, asked, b"rest")


def test_several_groups_in_one_turn(module: None):
    """A group that hangs or dies sends its company back, unjudged, and keeps nothing waiting;
    judged alone, it has its verdict."""
    hostile = scorer(1.0)

    def judged(*groups: tuple[str, ...]) -> list[list[float] | str]:
        """The values of each group; `again` for one that is to be handed in again."""
        tried = [(Task(answer=""), [attempt(text) for text in group]) for group in groups]
        found = hostile.judge(pack_groups(tried, lambda attempt: attempt.text != "skip"))
        verdicts = iter(unpack_verdicts(found.pieces, sum(map(len, groups))))
        said = [[next(verdicts) for _ in group] for group in groups]
        return [
            "again" if n in found.again else [v.value for each in group for v in each.values() if v]
            for n, group in enumerate(said)
        ]

    quick = judged(("a", "b"), ("skip",), ("skip", "c"), ("d" * 9,))
    assert quick == [[1.0, 1.0], [], [1.0], [1.0]]
    for bad in ("hang", "exit"):
        started = time.monotonic()
        first, ill, last = judged(("a",), ("b", bad), ("c",))
        assert (ill, last) == ("again", "again"), bad
        assert first in ([1.0], "again")
        assert time.monotonic() - started < 0.9, "not its whole timeout"
        [alone] = judged(("b", bad))
        assert len(alone) == 2
        assert judged(("skip",), ("b", bad)) == [[], alone], "one alone that has to be judged"
    long = judged(*[("x" * 100_000,) * 8] * 8)
    assert long == [[1.0] * 8] * 8, "more than a pipe holds, both ways"
    slow = judged(*[("sleep0.03", "a", "sleep0.03")] * 4)
    assert slow == [[1.0] * 3] * 4, "more than one reply"
    hostile.close()


def test_verifiers_of_groups_travel_together_too(module: None):
    each = scorer(5.0, "hostile_verifier:count", "hostile_verifier:verify")
    [child] = each._idle
    sizes = (1, 3, 0, 2)
    groups = [(Task(answer=""), [attempt(str(n)) for n in range(size)]) for size in sizes]
    for _ in range(2):
        found = each.judge(pack_groups(groups, lambda _: True))
        assert not found.again, "something was out of step"
        verdicts = iter(unpack_verdicts(found.pieces, sum(sizes)))
        for size in sizes:
            for said in [next(verdicts) for _ in range(size)]:
                assert {n.partition(":")[2]: v and v.value for n, v in said.items()} == {
                    "count": float(size),
                    "verify": 1.0,
                }
    assert each._idle == [child], "the child was killed"
    each.close()


def test_a_hung_verifier_of_groups_blames_its_own_group_alone(module: None):
    """Beside one that nobody has to look at, in the same parcel."""
    each = scorer(0.5, "hostile_verifier:count", "hostile_verifier:whole_group")
    texts = (("skip",), ("hang the group", "b"))
    groups = [(Task(answer=""), [attempt(text) for text in group]) for group in texts]
    found = each.judge(pack_groups(groups, lambda attempt: attempt.text != "skip"))
    each.close()
    skipped, *judged = unpack_verdicts(found.pieces, 3)
    assert not found.again and skipped == {}
    for verdicts in judged:
        said = {name.partition(":")[2]: verdict for name, verdict in verdicts.items()}
        assert said["whole_group"].outcome == "unscorable"  # type: ignore[union-attr]
        assert said["count"].value == 2.0  # type: ignore[union-attr]


def test_a_large_group_goes_through_the_pipes(module: None):
    hostile = scorer(5.0)
    scores = outcomes(hostile, *("x" * 300_000 for _ in range(8)))
    assert scores == [("scored", 1.0)] * 8
    hostile.close()


def test_a_verifier_that_cannot_be_loaded_is_an_error_at_the_start():
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        scorer(1.0, "nowhere:f")


def test_what_one_group_is_told_stays_with_it(module: None):
    """Every mixture of verifiers, group after group through the same child: none gets the verdicts
    of the one before."""
    for names in (("verify",), ("count",), ("count", "verify"), ("verify", "count", "whole_group")):
        each = scorer(5.0, *(f"hostile_verifier:{name}" for name in names))
        for size in (1, 3, 2, 5):
            found = each.verdicts(Task(answer=""), [attempt(str(n)) for n in range(size)])
            expected = {"verify": 1.0, "count": float(size), "whole_group": float(size)}
            for verdicts in found:
                said = {n.partition(":")[2]: v and v.value for n, v in verdicts.items()}
                assert said == {name: expected[name] for name in names}
        each.close()
