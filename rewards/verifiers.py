"""Verifiers by name: the built-in ones, and functions of the user's own in any common form.

A verifier is a function that can be called in a REPL. What it is given goes by the names of its
parameters; so functions written for TRL, verl, OpenRLHF, AReaL and slime run as they are.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rewards import answers, formats, maths, programs
from rewards.packed import Columns, columns_of
from rewards.score import RAW_ANSWER, Attempt, Task, Verdict, failure, finite

Function = Callable[..., Any]

BUILT_IN: dict[str, Function] = {
    "number": answers.number,
    "number_in_answer": answers.number_in_answer,
    "exact": answers.exact,
    "exact_in_answer": answers.exact_in_answer,
    "text": answers.text,
    "choice": answers.choice,
    "math": maths.math,
    "code": programs.code,
    "tags": formats.tags,
    "think_answer": formats.think_answer,
    "think_number": formats.think_number,
    "regex": formats.regex,
    "json": formats.json_schema,
    "language": formats.language,
    "repetition": formats.repetition,
    "length": formats.length,
}
HIDDEN = ("prompt", "completion", "extra", RAW_ANSWER)
"""Keys of a task's extra facts that are no columns, or whose names mean something else here."""
JSON_COLUMNS = ("extra_info", "info", "metadata")
"""Columns that datasets hold as JSON text and functions expect as objects."""
SERVICES = ("reward_model", "http", "judge")
"""Verifiers that are asked elsewhere than in a scoring child (`rewards/services.py`)."""

ANSWER = ("answer", "ground_truth", "label", "labels", "solution", "target", "reference")
PLAIN = {
    *ANSWER, "prompt", "completion", "response", "solution_str", "data_source", "source",
    "extra_info", "info", "extra", "completion_ids", "num_tokens", "truncated", "task", "attempt",
    "prompts", "completions", "log_metric", "log_extra", "trainer_state",
}  # fmt: skip
"""What a function of ours may ask for by name, besides columns of the dataset."""
OF_COMPLETION: dict[str, Callable[[Columns], Sequence[Any]]] = {
    **dict.fromkeys(("completion", "response", "solution_str"), attrgetter("text")),
    "num_tokens": attrgetter("num_tokens"),
    "truncated": attrgetter("truncated"),
}
"""What of that differs between the completions of a prompt, and is no object."""
OF_PROMPT: dict[str, Callable[[Task], Any]] = {
    **dict.fromkeys(ANSWER, attrgetter("reference")),
    "prompt": attrgetter("prompt"),
    **dict.fromkeys(("data_source", "source"), attrgetter("source")),
    **dict.fromkeys(("extra_info", "info", "extra"), lambda task: dict(task.extra)),
    "task": lambda task: task,
}
"""What they share, unless a column of the dataset has that name."""
OBJECTS = {"attempt", "completions", "completion_ids", "prompt_ids", "log_metric", "log_extra"}
"""What is made anew at each call."""
MISSING = object()
PLAIN_NUMBERS = frozenset((float, int, bool))
PLAIN_VALUES = (str, int, float, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a function wants to be called."""

    name: str
    batch: bool
    """Once for all completions of a prompt."""
    wants_tokens: bool = False


def form_of(function: Function) -> Form:
    """The form of a reward function, by the names of its parameters. Raises ValueError where they
    say nothing."""
    parameters = inspect.signature(function).parameters
    kinds = inspect.Parameter
    named = {n for n, p in parameters.items() if p.kind not in (kinds.VAR_KEYWORD,)}
    needed = [
        name
        for name, p in parameters.items()
        if p.default is kinds.empty
        and p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.POSITIONAL_ONLY)
    ]
    tokens = "completion_ids" in named
    if {"solution_str", "ground_truth"} <= named:
        return Form(name="verl", batch=False)
    if {"queries", "prompts", "labels"} <= named:
        return Form(name="OpenRLHF", batch=True)
    if needed[:2] == ["args", "sample"]:
        return Form(name="slime", batch=False, wants_tokens=True)
    if needed[:2] == ["args", "samples"]:
        return Form(name="slime group", batch=True, wants_tokens=True)
    if {"prompt", "completions"} <= named and "prompts" not in named:
        return Form(name="AReaL", batch=False, wants_tokens=True)
    if "completions" in named:
        takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
        return Form(name="TRL", batch=True, wants_tokens=tokens or takes_all)
    if {"completion", "response", "attempt"} & named:
        return Form(name="by name", batch=False, wants_tokens=tokens)
    if len(needed) == 2 and needed[0] not in ANSWER:
        return Form(name="(completion, answer)", batch=False)
    raise ValueError(
        f"its parameters ({', '.join(parameters)}) are of no form that is known: take "
        "(completion, answer), ask for what you need by name (completion, answer, prompt, ...), "
        "or keep the form of TRL, verl, OpenRLHF, AReaL or slime"
    )


def judged(call: Function, given: Sequence[Sequence[Any]]) -> list[float | Verdict | None]:
    """What a verifier says of each completion: a number, where it says nothing else; a failure
    where it raises. `given` holds, for each place of its parameters, the values of them all."""
    said: list[Any] = []
    calls = map(call, *given)
    while len(said) < len(given[0]):
        try:
            for value in calls:
                said.append(value)
            if len(said) < len(given[0]):  # or a StopIteration of its own would end them all
                raise RuntimeError("it raised StopIteration")
        except Exception as error:  # code we did not write: its failure becomes data
            said.append(failure(error))
    if set(map(type, said)) == {float} and isfinite(sum(said)):
        return said
    return [_said(value) for value in said]


def _said(value: Any) -> float | Verdict | None:
    try:
        if type(value) in PLAIN_NUMBERS and isfinite(value):
            return float(value)
        verdict = _verdict(_awaited(value))
    except Exception as error:  # code we did not write: its failure becomes data
        verdict = failure(error)
    return verdict and finite(verdict)


def timed(said: float | Verdict | None, seconds: float) -> Verdict | None:
    """What a judge said, with how long it took where that is not known better."""
    if isinstance(said, Verdict):
        return said if said.seconds else said.lasting(seconds)
    return None if said is None else Verdict(value=float(said), seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A function with its options, and how to call it."""

    name: str
    function: Function
    """Its options are bound already."""
    form: Form
    built_in: str = ""
    options: Mapping[str, Any]
    asks: frozenset[str] | None
    """The parameters that are given by name: not the recipe's options. None for any name."""
    own: tuple[str, ...]
    """Of those that it asks for, the ones that differ between the completions of a prompt. Empty
    where each call is to be prepared anew."""
    shared: tuple[str, ...]
    """And those that do not."""
    in_place: bool
    """Its first places are for these, in this order: by name, a call takes five times as long."""

    def one(self, task: Task, attempt: Attempt) -> Verdict | None:
        """The verdict on one completion; a failure for whatever the function raises."""
        started = time.monotonic()
        [said] = judged(*self.call_of(task, columns_of([attempt])))
        return timed(said, time.monotonic() - started)

    def call_of(self, task: Task, columns: Columns) -> tuple[Function, Sequence[Sequence[Any]]]:
        """What judges the completions of this prompt: a function, and for each of its places the
        values of all of them. What the prompt has to do with it is worked out once."""
        count = len(columns.text)
        if self.form.name == "(completion, answer)":
            return self.function, (columns.text, [task.answer] * count)
        plain = self._plain_of(task)
        if plain is None:
            return lambda attempt: self._judged(task, [attempt])[0], (columns.attempts(),)
        given = [OF_COMPLETION[name](columns) for name in self.own]
        if self.in_place and len(plain) == len(self.shared):
            return self.function, given + [[value] * count for value in plain.values()]
        call = functools.partial(self.function, **plain)
        return lambda *values: call(**dict(zip(self.own, values, strict=True))), given

    def _plain_of(self, task: Task) -> dict[str, Any] | None:
        """What its function is given for all completions of this prompt alike. None where any of it
        is an object: what a function could change is made anew each time."""
        if not self.own:
            return None
        if self.built_in:  # never a column: those are the dataset author's
            return {"answer": task.answer} if "answer" in self.shared else {}
        given = {}
        for name in self.shared:
            value = _of_prompt(task, name)
            if isinstance(value, PLAIN_VALUES):
                given[name] = value
            elif value is not MISSING:
                return None
        return given

    def group(self, task: Task, attempts: Sequence[Attempt]) -> list[Verdict | None]:
        """The verdicts on all completions of a prompt, by a function that sees them all."""
        return self._judged(task, attempts)

    def _judged(self, task: Task, attempts: Sequence[Attempt]) -> list[Verdict | None]:
        started = time.monotonic()
        figures: dict[str, float] = {}
        try:
            found = _call(self, task, attempts, figures)
            values = _values(found, len(attempts)) if self.form.batch else [found]
            verdicts = [_verdict(value) for value in values]
        except Exception as error:  # code we did not write: its failure becomes data
            verdicts = [failure(error) for _ in attempts]
        seconds = (time.monotonic() - started) / len(attempts)
        return [
            v and finite(replace(v, seconds=seconds, parts={**figures, **v.parts}))
            for v in verdicts
        ]


def _call(
    verifier: Verifier, task: Task, attempts: Sequence[Attempt], figures: dict[str, float]
) -> Any:
    function, form = verifier.function, verifier.form
    if form.name == "verl":
        values = {
            "data_source": task.source,
            "solution_str": attempts[0].text,
            "ground_truth": task.reference,
            "extra_info": _object(task.extra.get("extra_info", dict(task.extra))),
        }
        found = function(**_asked(verifier, values))
    elif form.name == "OpenRLHF":
        prompt = task.text
        found = function(
            queries=[prompt + attempt.text for attempt in attempts],
            prompts=[prompt] * len(attempts),
            labels=[task.reference] * len(attempts),
        )
    elif form.name == "slime":
        found = function(SimpleNamespace(), _sample(task, attempts[0]))
    elif form.name == "slime group":
        found = function(SimpleNamespace(), [_sample(task, attempt) for attempt in attempts])
    else:
        values = _by_name(form, task, attempts)
        values["log_metric"] = lambda name, value: figures.__setitem__(str(name), float(value))
        values["log_extra"] = lambda *_: None
        found = function(**_asked(verifier, values))
    return _awaited(found)


def _awaited(found: Any) -> Any:
    return _event_loop().run(found) if inspect.iscoroutine(found) else found


@functools.cache
def _event_loop() -> asyncio.Runner:
    """One for the life of the process: clients that a function keeps are bound to it."""
    return asyncio.Runner()


def _object(cell: Any) -> Any:
    """A column of JSON text as what it says."""
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _asked(verifier: Verifier, values: dict[str, Any]) -> dict[str, Any]:
    """What its function asks for, but for what is bound already: the recipe's options."""
    if verifier.asks is None:
        return {name: value for name, value in values.items() if name not in verifier.options}
    return {name: value for name, value in values.items() if name in verifier.asks}


def _is_option(parameter: inspect.Parameter) -> bool:
    """Set in the recipe or not at all; a column of that name means something else."""
    has_default = parameter.default is not inspect.Parameter.empty
    return parameter.kind is inspect.Parameter.KEYWORD_ONLY and has_default


def _of_prompt(task: Task, name: str) -> Any:
    """What a function is given by that name, the same for all completions of a prompt: a column of
    the dataset, or what the prompt itself has; else MISSING."""
    if name in task.extra and name not in HIDDEN:
        value = task.extra[name]
        return _object(value) if name in JSON_COLUMNS else value
    get = OF_PROMPT.get(name)
    return MISSING if get is None else get(task)


def _by_name(form: Form, task: Task, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Everything that a function may ask for; lists, one entry per completion, in a batch form."""
    chat = isinstance(task.prompt, list)
    found = {name: _of_prompt(task, name) for name in (*OF_PROMPT, *task.extra)}
    common = {name: value for name, value in found.items() if value is not MISSING}
    if form.batch:
        texts: list[Any] = [a.text for a in attempts]
        values = {name: [value] * len(attempts) for name, value in common.items()}
        return values | {
            "prompts": values.pop("prompt"),
            "completions": [[{"role": "assistant", "content": t}] for t in texts]
            if chat
            else texts,
            "completion_ids": [list(a.token_ids) for a in attempts],
            "trainer_state": SimpleNamespace(global_step=0),
        }
    attempt = attempts[0]
    return common | {
        "completion": attempt.text,
        "completions": attempt.text,
        "response": attempt.text,
        "solution_str": attempt.text,
        "prompt_ids": [],
        "completion_ids": list(attempt.token_ids),
        "num_tokens": attempt.num_tokens,
        "truncated": attempt.truncated,
        "attempt": attempt,
    }


def _sample(task: Task, attempt: Attempt) -> SimpleNamespace:
    """The fields of slime's sample that a reward function reads."""
    return SimpleNamespace(
        prompt=task.prompt,
        response=attempt.text,
        label=task.reference,
        metadata=_object(task.extra.get("metadata")) or dict(task.extra),
        tokens=list(attempt.token_ids),
        response_length=attempt.num_tokens,
        status=SimpleNamespace(value="truncated" if attempt.truncated else "completed"),
    )


def _values(found: Any, count: int) -> list[Any]:
    """One value per completion, of what a batch function returned. Raises ValueError."""
    if isinstance(found, Mapping):  # OpenRLHF: {"rewards": tensor, "scores": ..., "extra_logs": ..}
        found = found.get("rewards", found.get("scores"))
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        size = len(values) if isinstance(values, Sequence) else type(values).__name__
        raise ValueError(f"it returned {size} for {count} completions, not one value for each")
    return list(values)


def _verdict(found: Any) -> Verdict | None:
    """What a function returned for one completion: a number, None (does not apply), a dict with
    `score` and further figures, steps, or a Verdict. Raises what a wrong type raises."""
    if found is None:
        return None
    if isinstance(found, Verdict):
        return Verdict(
            value=float(found.value),
            outcome=found.outcome,
            note=str(found.note),
            steps=tuple((int(end), float(value)) for end, value in found.steps),
            parts={str(name): float(value) for name, value in found.parts.items()},
        )
    if isinstance(found, Mapping):
        key = next((k for k in ("score", "reward", "rewards") if k in found), None)
        if key is None:
            raise ValueError(f"the dict that it returned has no 'score': {sorted(found)}")
        figures = {**found, **(found.get("parts") or {})}
        parts = {str(k): float(v) for k, v in figures.items() if k != key and _is_number(v)}
        parts = {name: value for name, value in parts.items() if isfinite(value)}
        return Verdict(value=float(found[key]), parts=parts, note=str(found.get("note", "")))
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        if len(found) == 1 and _is_number(found[0]):  # written for a batch of one
            return Verdict(value=float(found[0]))
        steps = tuple((int(end), float(value)) for end, value in found)
        value = statistics.fmean(value for _, value in steps) if steps else 0.0
        return Verdict(value=value, steps=steps)
    return Verdict(value=float(found))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


# -- by name --------------------------------------------------------------------------------------


def load(label: str, use: str = "", options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier of a line in `rewards.verifiers`: a built-in name, `module:function` or
    `file.py:function`, with keyword options. Raises ValueError saying which names there are."""
    function = find_function(use or label)
    options = dict(options or {})
    if options:
        parameters = inspect.signature(function).parameters
        known = [n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        takes_any = len(known) < len(parameters)
        for name in options:
            if name not in known and not takes_any:
                free = [n for n in known if n not in PLAIN] or ["none"]
                raise ValueError(
                    f"rewards.verifiers: {label!r} has no option {name!r}; its options are "
                    f"{', '.join(free)}"
                )
        function = functools.partial(function, **options)
    try:
        form = form_of(function)
    except ValueError as error:
        raise ValueError(f"rewards.verifiers: {label!r}: {error}") from error
    built_in = (use or label) if (use or label) in BUILT_IN else ""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    asks = {
        name
        for name, parameter in parameters.items()
        if name not in options and (name in PLAIN or not _is_option(parameter))
    }
    anew = form.name != "by name" or takes_any or not asks.isdisjoint(OBJECTS)
    own = tuple(n for n in parameters if n in asks and n in OF_COMPLETION and not anew)
    shared = tuple(n for n in parameters if n in asks and n not in OF_COMPLETION)
    by_place = inspect.Parameter.POSITIONAL_OR_KEYWORD
    places = [name for name, p in parameters.items() if p.kind is by_place]
    return Verifier(
        name=label,
        function=function,
        form=form,
        built_in=built_in,
        options=options,
        asks=None if takes_any else frozenset(asks),
        own=own,
        shared=shared,
        in_place=places[: len(own + shared)] == [*own, *shared],
    )


def find_function(name: str) -> Function:
    """The function behind a built-in name, a `module:function` or a `file.py:function`.

    Raises ValueError when there is none, saying which names there are.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, function_name = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"rewards.verifiers: {name!r} is not a built-in verifier ({', '.join(BUILT_IN)}); "
            "name your own as 'module:function' or 'file.py:function'"
        )
    try:
        module = _module(module_name)
    except Exception as error:  # the user's module: whatever it raises is about it, not about us
        raise ValueError(
            f"rewards.verifiers: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(
            f"rewards.verifiers: module {module_name!r} has no function {function_name!r}"
        )
    if not callable(function):
        raise ValueError(f"rewards.verifiers: {name!r} is a {type(function).__name__}, no function")
    return cast(Function, function() if inspect.isclass(function) else function)


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    known = f"cohort_file_{path.stem}_{abs(hash(path))}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file (looked in {Path.cwd()})")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickles of its own look it up there
    spec.loader.exec_module(module)
    return module
