"""Datasets to a stream of prompts that can be continued at any point.

The stream keeps no state: `at(ticket)` is a pure function of the dataset, the seed and the ticket,
so resuming a run is continuing to count.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from rollout.config import PromptConfig
from rollout.layouts import Layout, answer_of, detect, extra_of, question_of, value
from rollout.types import Prompt

FORMATS = (".jsonl", ".parquet", ".arrow")


def read_rows(dataset: str, *, subset: str = "", split: str = "train") -> list[dict[str, Any]]:
    """The rows of a dataset file or hub dataset. Raises ValueError when there are none."""
    if not dataset:
        raise ValueError("prompts.dataset is not set: name a .jsonl, .parquet or .arrow file")
    path = Path(dataset)
    if path.suffix not in FORMATS and not path.is_file():
        return _read_hub(dataset, subset, split)
    if not path.is_file():
        raise ValueError(f"dataset {dataset!r}: no such file (looked in {Path.cwd()})")
    try:
        if path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as file:
                rows = [json.loads(line) for line in file if line.strip()]
        elif path.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".arrow":
            rows = _read_arrow(path).to_pylist()
        else:
            raise ValueError(f"the name must end in {', '.join(FORMATS)}")
    except (ValueError, OSError) as error:  # json's and pyarrow's own errors are ValueErrors
        raise ValueError(f"dataset {dataset!r} cannot be read: {error}") from error
    if not rows:
        raise ValueError(f"dataset {dataset!r} is empty")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"dataset {dataset!r}, row {number} is a {type(row).__name__}, not an object with "
                "columns"
            )
    return rows


def _read_arrow(path: Path) -> pa.Table:
    """Arrow IPC in either framing: Hugging Face's `datasets` writes streams, most others files."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _read_hub(dataset: str, subset: str, split: str) -> list[dict[str, Any]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  # the `hub` extra
    except ImportError as error:
        raise ValueError(
            f"dataset {dataset!r}: no such file here (a file's name ends in {', '.join(FORMATS)}); "
            "if it is a dataset of the Hugging Face hub, install the extra: pip install cohort[hub]"
        ) from error
    rows = [dict(row) for row in datasets.load_dataset(dataset, subset or None, split=split)]
    if not rows:
        raise ValueError(f"dataset {dataset!r}, split {split!r} is empty")
    return rows


def fingerprint(rows: Sequence[Any]) -> str:
    """Of content and order, so that a resumed run can tell another dataset."""
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What became of a dataset's rows on the way to prompts."""

    kept: int
    dropped: int
    truncated: int
    longest: int
    """Tokens of the longest prompt kept."""

    def __str__(self) -> str:
        changed = f", {self.dropped} dropped, {self.truncated} truncated" * (
            self.dropped + self.truncated > 0
        )
        return f"{self.kept} prompts, longest {self.longest} tokens{changed}"


class PromptStream:
    """Prompts without end: epoch after epoch, each in its own order.

    Raises ValueError for a missing column, a prompt over the limit when the policy is `error`, or
    a chat template that is asked for and not there.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any, *, seed: int, limit: int = 0) -> None:
        rows = read_rows(config.dataset, subset=config.subset, split=config.split)
        if limit:
            rows = rows[:limit]
        self._config = config
        self._seed = seed
        name = Path(config.dataset).stem
        self.layout = _layout(config, rows)
        questions, references = _columns(config, self.layout, rows)
        extras = [extra_of(row, self.layout) for row in rows]
        templated = [_templated(config, tokenizer, question) for question in questions]
        self.fingerprint = fingerprint(list(zip(templated, references, extras, strict=True)))
        encoded = _encode(tokenizer, templated, chat=_uses_chat(config, tokenizer))
        self._prompts: list[Prompt] = []
        dropped = truncated = 0
        for number, (row, text, ids) in enumerate(zip(rows, templated, encoded, strict=True)):
            source = value(row, self.layout.source) if self.layout.source else name
            if len(ids) > config.max_tokens:
                if config.too_long == "error":
                    raise ValueError(
                        f"prompt {name}/{number} has {len(ids)} tokens, prompts.max_tokens is "
                        f"{config.max_tokens}: raise it, or set prompts.too_long=drop or truncate"
                    )
                if config.too_long == "drop":
                    dropped += 1
                    continue
                ids, truncated = ids[-config.max_tokens :], truncated + 1
            prompt = Prompt(
                id=f"{name}/{number}",
                token_ids=np.array(ids, dtype=np.int32),
                text=text,
                answer=references[number],
                source=str(source),
                extra=extras[number],
            )
            self._prompts.append(prompt)
        if not self._prompts:
            raise ValueError(
                f"dataset {config.dataset!r}: all {len(rows)} prompts are longer than "
                f"prompts.max_tokens={config.max_tokens}"
            )
        longest = max(len(p.token_ids) for p in self._prompts)
        self.report = PromptReport(len(self._prompts), dropped, truncated, longest)

    def __len__(self) -> int:
        """Prompts per epoch."""
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """One epoch, in the file's order."""
        return iter(self._prompts)

    def at(self, ticket: int) -> Prompt:
        """The prompt of a ticket: position `ticket % len` of epoch `ticket // len`."""
        epoch, position = divmod(ticket, len(self._prompts))
        return self._prompts[self._order(epoch)[position]]

    def _order(self, epoch: int) -> np.ndarray:
        if not self._config.shuffle:
            return np.arange(len(self._prompts))
        if self._cached_epoch != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._cached_order = generator.permutation(len(self._prompts))
            self._cached_epoch = epoch
        return self._cached_order

    _cached_epoch = -1
    _cached_order = np.empty(0, dtype=np.int64)


def _layout(config: PromptConfig, rows: list[dict[str, Any]]) -> Layout:
    """What the options say, and what is recognised where they say nothing."""
    found = detect(rows[0])
    if found is None and not config.question:
        raise ValueError(
            f"dataset {config.dataset!r}: no layout that is known has the columns "
            f"{', '.join(rows[0])}; set prompts.question and prompts.answer"
        )
    found = found or Layout(name="your", question="", answer="")
    answer = config.answer or found.answer
    if config.question and not answer:
        answer = None  # a question of one's own, and nothing known that answers it
    return Layout(
        name="your" if config.question or config.answer else found.name,
        question=config.question or found.question,
        answer=answer,
        source=config.source or found.source,
    )


def _columns(
    config: PromptConfig, layout: Layout, rows: list[dict[str, Any]]
) -> tuple[list[Any], list[str]]:
    """Questions and reference answers. Raises ValueError naming the first row that lacks one."""
    questions: list[Any] = []
    references: list[str] = []
    for number, row in enumerate(rows):
        question, reference = question_of(row, layout), answer_of(row, layout)
        asked = [("question", layout.question, question)]
        if layout.answer is not None:
            asked.append(("answer", layout.answer, reference))
        for option, path, found in asked:
            if found in (None, "", []):
                what = "is empty" if value(row, path) is not None else "does not exist"
                raise ValueError(
                    f"dataset {config.dataset!r}, row {number}: column {path!r} {what} "
                    f"(columns: {', '.join(row)}); set prompts.{option}"
                )
        if not isinstance(question, (str, list)):
            raise ValueError(
                f"dataset {config.dataset!r}, row {number}: column {layout.question!r} is a "
                f"{type(question).__name__}, neither a text nor a list of messages"
            )
        questions.append(question)
        references.append(reference)
    return questions, references


def _uses_chat(config: PromptConfig, tokenizer: Any) -> bool:
    has_template = bool(tokenizer.chat_template)
    if config.template == "chat" and not has_template:
        raise ValueError(
            "prompts.template=chat, but the tokenizer has no chat template: set "
            "prompts.template=raw, or add a chat_template to the model's tokenizer"
        )
    return has_template and config.template != "raw"


def _templated(config: PromptConfig, tokenizer: Any, question: str | list[dict[str, str]]) -> str:
    if not _uses_chat(config, tokenizer):
        if not isinstance(question, str):
            alone = [message.get("role") for message in question] == ["user"]
            if not alone or not isinstance(question[0].get("content"), str):
                raise ValueError(
                    "a conversation needs a chat template, or is to be one text of the user's: the "
                    "tokenizer has none, or prompts.template=raw"
                )
            question = question[0]["content"]
        return config.prefix + question + config.suffix
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    if config.prefix or config.suffix:
        last = messages[-1]
        framed = config.prefix + last["content"] + config.suffix
        messages = [*messages[:-1], {**last, "content": framed}]
    if config.system:
        messages = [{"role": "system", "content": config.system}, *messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _encode(tokenizer: Any, texts: list[str], *, chat: bool) -> list[list[int]]:
    """A chat template writes its own special tokens; adding the tokenizer's would double the
    BOS."""
    return tokenizer(texts, add_special_tokens=not chat)["input_ids"]
