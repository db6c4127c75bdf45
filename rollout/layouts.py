"""Which column of a dataset is what: the layouts of other systems, recognised by their columns.

What is recognised is printed, and an option overrides each part of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.score import RAW_ANSWER

ANSWERS = ("answer", "ground_truth", "solution", "label", "target", "reference", "output")
QUESTIONS = ("prompt", "question", "problem", "messages", "input", "query", "instruction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths of columns; `a.b` is field `b` of column `a`."""

    name: str
    question: str
    answer: str | None
    """"" takes the last assistant message of the question; None is a dataset without answers."""
    source: str = ""

    def __str__(self) -> str:
        answer = self.answer or "its last assistant message"
        answer = "none" if self.answer is None else answer
        source = f", source={self.source}" if self.source else ""
        return f"{self.name} layout: question={self.question}, answer={answer}{source}"


def detect(row: Mapping[str, Any]) -> Layout | None:
    """The layout of a dataset, by its first row; None when no columns are known."""
    source = "data_source" if "data_source" in row else "source" if "source" in row else ""
    if "prompt" in row and "ground_truth" in _fields(row.get("reward_model")):
        return Layout(
            name="verl", question="prompt", answer="reward_model.ground_truth", source=source
        )
    if "prompt" in row and "ground_truth" in _fields(row.get("reward_spec")):
        return Layout(
            name="SkyRL", question="prompt", answer="reward_spec.ground_truth", source=source
        )
    question = next((name for name in QUESTIONS if name in row), None)
    if question is None:
        return None
    answer = next((name for name in ANSWERS if name in row and name != question), None)
    if answer is None:
        last = (_messages(row[question]) or [{}])[-1]
        if last.get("role") != "assistant":
            return Layout(name="prompts only", question=question, answer=None, source=source)
        return Layout(name="messages", question=question, answer="", source=source)
    names = {
        ("question", "answer"): "GSM8K",
        ("prompt", "label"): "slime",
        ("input", "label"): "OpenRLHF",
        ("messages", "ground_truth"): "open-instruct",
    }
    name = names.get((question, answer), "TRL" if question == "prompt" else question)
    if name == "open-instruct" and not source and isinstance(row.get("dataset"), str):
        source = "dataset"
    return Layout(name=name, question=question, answer=answer, source=source)


def value(row: Mapping[str, Any], path: str) -> Any:
    """What stands at a path; None when nothing does. A column of JSON text is looked into."""
    if path in row:
        return row[path]
    column, _, rest = path.partition(".")
    fields = _fields(row.get(column)) if rest else {}
    return value(fields, rest) if fields else None


def question_of(row: Mapping[str, Any], layout: Layout) -> Any:
    """A text or a list of messages; without the answer, where that is the last message."""
    found = value(row, layout.question)
    messages = _messages(found)
    if messages is None:
        return found
    if messages and messages[-1].get("role") == "assistant" and layout.answer == "":
        return messages[:-1]
    return messages


def answer_of(row: Mapping[str, Any], layout: Layout) -> str:
    """The reference answer as a text: JSON where the column holds lists or objects."""
    if layout.answer is None:
        return ""
    if layout.answer:
        found = value(row, layout.answer)
    else:
        messages = _messages(value(row, layout.question))
        found = messages[-1].get("content") if messages else None
    if found is None or isinstance(found, str):
        return found or ""
    return json.dumps(found, default=str) if isinstance(found, list | dict) else str(found)


def extra_of(row: Mapping[str, Any], layout: Layout) -> str:
    """Everything that a reward function may ask for besides the answer's text, as JSON: the
    question before any template (as `prompt`), the other columns, and the answer itself where it is
    no text."""
    plain_answer = layout.answer == "answer" and isinstance(row.get("answer"), str)
    known = {layout.question} | ({"answer"} if plain_answer else set())
    others = {name: cell for name, cell in row.items() if name not in known}
    answer = value(row, layout.answer) if layout.answer else None
    if answer is not None and not isinstance(answer, str):
        others[RAW_ANSWER] = answer
    others["prompt"] = question_of(row, layout)
    return json.dumps(others, default=str)


def _fields(cell: Any) -> Mapping[str, Any]:
    if isinstance(cell, str) and cell[:1] == "{":
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return {}
    return cell if isinstance(cell, Mapping) else {}


def _messages(cell: Any) -> list[dict[str, Any]] | None:
    """Chat messages, also where a column holds them as JSON text; None for anything else."""
    if isinstance(cell, str) and cell[:1] == "[":
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not cell:
        return None
    if not all(isinstance(m, Mapping) and "role" in m and "content" in m for m in cell):
        return None
    return [dict(message) for message in cell]
