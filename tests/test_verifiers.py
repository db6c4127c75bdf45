"""Reward functions as they were written for other systems, recognised by their parameters."""

import math
from pathlib import Path

import pytest

from cluster.scoring import check
from rewards import Attempt, RewardConfig, Task, Verdict
from rewards.packed import columns_of
from rewards.verifiers import BUILT_IN, form_of, judged, load

FUNCTIONS = """
import asyncio
from rewards import Verdict

def plain(text, expected):
    return float(text == expected)

def by_name(completion, answer, difficulty, prompt="none", truncated=None):
    return len(completion) + len(answer) + difficulty + (prompt == "Q?") * 100

async def slow(completion, ground_truth):
    await asyncio.sleep(0)
    return completion == ground_truth

def trl(prompts, completions, completion_ids, solution, log_metric=None, **kwargs):
    log_metric("seen", len(completions))
    assert len(prompts) == len(solution) == len(kwargs["difficulty"]) == len(completions)
    return [None if c == "skip" else float(c == s) for c, s in zip(completions, solution)]

def trl_chat(completions, **kwargs):
    return [float(c[0]["role"] == "assistant" and c[0]["content"] == "4") for c in completions]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "tasks" and extra_info["index"] == 3
    return {"score": float(solution_str == ground_truth), "acc": 0.5, "name": "x"}

def reward_func(queries, prompts, labels):
    import torch
    right = [float(q == p + l) for q, p, l in zip(queries, prompts, labels)]
    return {"rewards": torch.tensor(right), "scores": torch.tensor(right), "extra_logs": {}}

def areal(prompt, completions, prompt_ids, completion_ids, **row):
    assert isinstance(completions, str) and completion_ids == [1, 2]
    return float(completions == row["answer"])

async def slime(args, sample):
    assert sample.prompt == "Q?" and sample.response_length == 2
    return float(sample.response == sample.label)

async def slime_group(args, samples):
    return [float(s.response == s.label) for s in samples]

def verdict(completion, answer):
    return Verdict(value=0.0, outcome="tampered", note="caught")

def steps(completion, answer):
    return [(1, 0.5), (2, 1.0)]

def odd(a, b, c):
    return 0.0

def wrong_count(completions, **kwargs):
    return [1.0]

def no_score(completion, answer):
    return {"accuracy": 1.0}

def with_options(completion, answer, *, bonus=1.0):
    return bonus
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("functions") / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return str(path)


TASK = Task(
    prompt="Q?",
    answer="4",
    source="tasks",
    extra={"difficulty": 7, "extra_info": {"index": 3}, "solution": "4"},
)


def attempts(*texts: str) -> list[Attempt]:
    return [Attempt(text=t, num_tokens=2, truncated=False, token_ids=(1, 2)) for t in texts]


@pytest.mark.parametrize(
    ("function", "form", "batch", "values"),
    [
        ("plain", "(completion, answer)", False, [1.0, 0.0]),
        ("by_name", "by name", False, [109.0, 109.0]),
        ("slow", "by name", False, [1.0, 0.0]),
        ("trl", "TRL", True, [1.0, 0.0]),
        ("compute_score", "verl", False, [1.0, 0.0]),
        ("reward_func", "OpenRLHF", True, [1.0, 0.0]),
        ("areal", "AReaL", False, [1.0, 0.0]),
        ("slime", "slime", False, [1.0, 0.0]),
        ("slime_group", "slime group", True, [1.0, 0.0]),
    ],
)
def test_functions_of_other_systems_run_as_they_are(
    file: str, function: str, form: str, batch: bool, values: list[float]
):
    verifier = load(f"{file}:{function}")
    assert (verifier.form.name, verifier.form.batch) == (form, batch)
    tried = attempts("4", "5")
    found = verifier.group(TASK, tried) if batch else [verifier.one(TASK, a) for a in tried]
    assert [v and (v.outcome, v.value) for v in found] == [("scored", value) for value in values], (
        found
    )


def test_further_figures_of_a_function_become_parts(file: str):
    [of_dict] = [load(f"{file}:compute_score").one(TASK, attempts("4")[0])]
    assert of_dict is not None and of_dict.parts == {"acc": 0.5}
    of_trl = load(f"{file}:trl").group(TASK, attempts("4", "skip", "5"))
    assert of_trl[1] is None, "None is 'does not apply'"
    assert of_trl[0] is not None and of_trl[0].parts == {"seen": 3.0}


def test_conversations_come_as_messages(file: str):
    chat = Task(prompt=[{"role": "user", "content": "2+2?"}], answer="4")
    found = load(f"{file}:trl_chat").group(chat, attempts("4", "5"))
    assert [v and v.value for v in found] == [1.0, 0.0]


def test_verdicts_and_steps_are_taken_as_they_are(file: str):
    caught = load(f"{file}:verdict").one(TASK, attempts("4")[0])
    assert caught is not None and (caught.outcome, caught.note) == ("tampered", "caught")
    steps = load(f"{file}:steps").one(TASK, attempts("44")[0])
    assert steps is not None and (steps.value, steps.steps) == (0.75, ((1, 0.5), (2, 1.0)))


@pytest.mark.parametrize(
    ("function", "says"),
    [("wrong_count", "it returned 1 for 3 completions"), ("no_score", "has no 'score'")],
)
def test_what_a_function_returns_wrongly_is_our_failure(file: str, function: str, says: str):
    verifier = load(f"{file}:{function}")
    tried = attempts("a", "b", "c")
    found = verifier.group(TASK, tried) if verifier.form.batch else [verifier.one(TASK, tried[0])]
    assert all(v is not None and v.outcome == "unscorable" and says in v.note for v in found), found


def test_one_failure_among_completions_is_one_failure():
    """Whatever a function raises or returns for one, the others have their own."""

    def moody(completion: str) -> object:
        if completion == "stop":
            raise StopIteration
        if completion == "raise":
            raise KeyError("lost")
        found = {"int": 3, "true": True, "none": None, "text": "0.25", "nan": math.nan}
        return found.get(completion, 1.0)

    texts = ["a", "stop", "raise", "int", "b", "true", "none", "text", "nan", "stop", "c"]
    said = judged(moody, [texts])
    values = [v if not isinstance(v, Verdict) else (v.outcome, v.note) for v in said]
    assert values == [
        1.0,
        ("unscorable", "RuntimeError: it raised StopIteration"),
        ("unscorable", "KeyError: 'lost'"),
        3.0,
        1.0,
        1.0,
        None,
        ("scored", ""),
        ("unscorable", "it returned nan"),
        ("unscorable", "RuntimeError: it raised StopIteration"),
        1.0,
    ]
    assert judged(moody, [[]]) == []
    assert judged(lambda _: 1e308, [texts]) == [1e308] * len(texts), "numbers whose sum is none"


PARAMETERS = """
def by_place(completion, answer): return f"{completion} {answer}".count("x")
def other_order(answer, completion): return by_place(completion, answer)
def optional(completion, hint="no", answer="none"): return by_place(completion + hint, answer)
def several(completion, num_tokens, answer, truncated): return num_tokens + 10 * truncated
def keyword(*, completion, answer): return by_place(completion, answer)
def of_a_column(completion, tags): return len(tags)
"""


@pytest.mark.parametrize(
    ("function", "values"),
    [
        ("by_place", [2.0, 3.0]),
        ("other_order", [2.0, 3.0]),
        ("optional", [2.0, 3.0]),
        ("several", [5.0, 16.0]),
        ("keyword", [2.0, 3.0]),
        ("of_a_column", [2.0, 2.0]),
    ],
)
def test_parameters_in_any_order(tmp_path: Path, function: str, values: list[float]):
    (tmp_path / "parameters.py").write_text(PARAMETERS)
    task = Task(answer="xx", extra={"tags": ["p", "q"]})
    tried = [
        Attempt(text="a", num_tokens=5, truncated=False),
        Attempt(text="x", num_tokens=6, truncated=True),
    ]
    verifier = load(f"{tmp_path}/parameters.py:{function}")
    found = judged(*verifier.call_of(task, columns_of(tried)))
    assert [v.value if isinstance(v, Verdict) else v for v in found] == values
    one = [verifier.one(task, attempt) for attempt in tried]
    assert [v and v.value for v in one] == values


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nmber", "not a built-in verifier (number, number_in_answer"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("no/such/file.py:f", "cannot import 'no/such/file.py': FileNotFoundError"),
        ("json:no_such_function", "module 'json' has no function 'no_such_function'"),
        ("json:__name__", "is a str, no function"),
    ],
)
def test_unknown_verifiers_are_refused_by_name(name: str, says: str):
    with pytest.raises(ValueError, match=r"rewards\.verifiers") as error:
        load(name)
    assert says in str(error.value)


def test_parameters_that_say_nothing_are_refused(file: str):
    with pytest.raises(
        ValueError, match=r"its parameters \(a, b, c\) are of no form that is known"
    ):
        load(f"{file}:odd")


def test_options_are_keyword_arguments_and_others_are_refused(file: str):
    plain = load("mine", f"{file}:with_options", {"bonus": 0.25})
    found = plain.one(TASK, attempts("4")[0])
    assert found is not None and found.value == 0.25
    with pytest.raises(ValueError, match="'tags' has no option 'tgas'; its options are tags"):
        load("tags", options={"tgas": ["a"]})
    with pytest.raises(ValueError, match="its options are none"):
        load("number", options={"answer_is": 3})


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_ins_have_a_form_and_say_what_they_do(name: str):
    assert not form_of(BUILT_IN[name]).batch
    assert BUILT_IN[name].__doc__


def test_the_form_is_printed_before_a_run(file: str):
    config = RewardConfig.model_validate(
        {"verifiers": {f"{file}:trl": 1.0, "number": 0.5, "code": {"total_seconds": 3}}}
    )
    notes = check(config)
    assert notes[0] == f"verifier {file}:trl: TRL form, once for all completions of a prompt"
    assert "programs run in the" in notes[1]
    assert config.weights == {f"{file}:trl": 1.0, "number": 0.5, "code": 1.0}
    late = RewardConfig.model_validate({"verifiers": {"code": 1.0}, "timeout": 5})
    with pytest.raises(ValueError, match=r"does not fit in rewards\.timeout=5"):
        check(late)


def test_wrong_options_of_a_service_are_refused():
    judge = {"judge": {"url": "localhost:8000", "modle": "x"}}
    with pytest.raises(ValueError, match=r"rewards\.verifiers\.judge \(judge\)") as error:
        check(RewardConfig.model_validate({"verifiers": judge}))
    for word in ("url:", "modle: Extra", "model: Field required", "it takes url"):
        assert word in str(error.value)


def test_a_verdict_can_be_made_by_hand():
    assert Verdict(value=1.0).lasting(2.0).seconds == 2.0


def test_columns_reach_functions_of_users_and_never_options_or_built_ins(file: str):
    """A dataset's author writes its columns; the recipe's author sets limits and answers."""
    extra = {"answer": 9, "tags": ["algebra"], "seconds": 0.0, "bonus": 50.0, "pattern": "x"}
    task = Task(prompt="Q?", answer="4", extra=extra)
    for name, said, value in (
        ("number", "it is 4", 1.0),
        ("tags", "<think>a</think><answer>4</answer>", 1.0),
        ("math", "4", 1.0),
    ):
        verdict = load(name).one(task, attempts(said)[0])
        assert verdict is not None and (verdict.outcome, verdict.value) == ("scored", value), name
    own = load(f"{file}:with_options").one(task, attempts("4")[0])
    assert own is not None and own.value == 1.0, "an option is set in the recipe or not at all"


STRUCTURED = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(int(solution_str) == ground_truth["target"] and extra_info["index"] == 3)

def by_number(completion, label):
    return float(int(completion) == label)

async def client(completion, answer):
    import asyncio
    global lock
    if "lock" not in globals():
        lock = asyncio.Lock()
    async with lock:
        return 1.0
"""


def test_answers_keep_the_type_that_the_dataset_gave_them(tmp_path: Path):
    from rollout.layouts import answer_of, detect, extra_of
    from rollout.types import Prompt

    (tmp_path / "structured.py").write_text(STRUCTURED)

    def task_of(row: dict) -> Task:
        layout = detect(row)
        assert layout is not None
        prompt = Prompt(
            id="a",
            token_ids=[],  # type: ignore[arg-type]
            text="<|user|>Q?<|assistant|>",
            answer=answer_of(row, layout),
            source="",
            extra=extra_of(row, layout),
        )
        return prompt.task()

    verl = {
        "prompt": "Q?",
        "reward_model": {"ground_truth": {"target": 4, "numbers": [1, 3]}},
        "extra_info": '{"index": 3}',
    }
    assert task_of(verl).prompt == "Q?", "as the dataset has it, without our template"
    for row, function in ((verl, "compute_score"), ({"prompt": "Q?", "label": 4}, "by_number")):
        verdict = load(f"{tmp_path}/structured.py:{function}").one(task_of(row), attempts("4")[0])
        assert verdict is not None and (verdict.outcome, verdict.value) == ("scored", 1.0), verdict
    twice = load(f"{tmp_path}/structured.py:client")
    assert [twice.one(TASK, a).outcome for a in attempts("a", "b")] == ["scored"] * 2  # type: ignore[union-attr]
