"""The shape of a completion: tags, JSON, patterns, language, repetition, length. The reference
answer plays a part only where it says so."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from rewards.answers import as_number, fenced, last_answer_block, said

THINK = ("think", "answer")
CODE = re.compile(r"```[^`]*```|`[^`\n]*`|\$[^$\n]*\$|\\\[[^\\]{0,200}?\\\]|\\\([^\\]{0,200}?\\\)")
WORD = re.compile(r"\w+")
SHORTEST_SENTENCE = 12
"""Bytes of words below which a sentence does not tell its language."""


def blocks(completion: str, tags: Sequence[str]) -> list[str] | None:
    """What each tag holds, where the whole completion is one block of each, in this order, with
    nothing around them.

    >>> blocks("<a>1</a>\\n<b>2</b>", ["a", "b"]), blocks("<b>2</b><a>1</a>", ["a", "b"])
    (['1', '2'], None)
    """
    names = "|".join(map(re.escape, tags))
    if len(re.findall(rf"</?(?:{names})>", completion)) != 2 * len(tags):
        return None
    whole = r"\s*".join(f"<{re.escape(tag)}>(.*)</{re.escape(tag)}>" for tag in tags)
    match = re.fullmatch(whole, completion.strip(), re.DOTALL)
    return list(match.groups()) if match else None


def tags(completion: str, answer: str, *, tags: Sequence[str] = THINK) -> float:
    """1.0 when the whole completion is one block of each tag, in this order and with nothing around
    them, and the last one says something.

    >>> tags("<reasoning>x</reasoning><answer>12</answer>", "", tags=["reasoning", "answer"])
    1.0
    """
    found = blocks(completion, tags)
    return float(found is not None and bool(found[-1].strip()))


def think_answer(completion: str, answer: str) -> float:
    """`tags` with `<think>` and `<answer>`.

    >>> think_answer("<think>7+5=12</think><answer>12</answer>", "")
    1.0
    """
    return tags(completion, answer)


def think_number(completion: str, answer: str) -> float:
    """Like `think_answer`, and the answer block holds a number and nothing else.

    >>> think_number("<think></think><answer>twelve</answer>", "")
    0.0
    """
    found = blocks(completion, THINK)
    return float(found is not None and as_number(found[1]) is not None)


def regex(completion: str, answer: str, *, pattern: str = "", whole: bool = False) -> float:
    """1.0 when the pattern is found in the completion (with `whole`: is all of it, but for white
    space at the ends). Without a pattern, the reference answer is one.

    Raises ValueError when it is no regular expression.
    """
    try:
        compiled = re.compile(pattern or answer, re.DOTALL)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{(pattern or answer)[:80]!r} is no regular expression: {error}"
        ) from error
    text = completion.strip() if whole else completion
    return float((compiled.fullmatch if whole else compiled.search)(text) is not None)


def json_schema(completion: str, answer: str, *, schema: dict[str, Any] | None = None) -> float:
    """1.0 when the completion is JSON that the schema accepts. It stands in the last `<answer>`
    block, else the last fenced block, else is all that is said. Without a schema, the reference
    answer is one. References to other documents are not followed.

    Raises ValueError when the schema is none.

    >>> json_schema('```json\\n{"a": 1}\\n```', "", schema={"required": ["a"]})
    1.0
    """
    import jsonschema
    import referencing
    import referencing.exceptions
    from jsonschema.validators import validator_for

    try:
        rules = schema if schema is not None else json.loads(answer)
        checker = validator_for(rules, jsonschema.Draft202012Validator)
        checker.check_schema(rules)
    except (ValueError, RecursionError, AttributeError, jsonschema.SchemaError) as error:
        raise ValueError(f"no JSON schema: {str(error)[:200]}") from error
    try:
        value = json.loads(json_text(completion), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    try:
        return float(checker(rules, registry=referencing.Registry()).is_valid(value))
    except RecursionError:
        return 0.0
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"the schema refers to what is not in it: {error}") from error


def json_text(completion: str) -> str:
    """Where a completion's JSON stands."""
    rest = said(completion)
    block = last_answer_block(rest)
    if block is not None:
        return block
    return (fenced(rest, ["json"]) or rest).strip()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def language(completion: str, answer: str, *, language: str = "en") -> float:
    """The share of the words that stands in sentences of the language (an ISO 639-1 code), code
    and formulas left out; 1.0 where nothing is said. R1's reward for not mixing languages
    (arXiv 2501.12948, section 2.3.2), by sentences as py3langid tells them.

    Raises ValueError for a language that py3langid does not know.
    """
    known = identifier()
    if language not in known.labels:
        raise ValueError(f"language={language!r} is none of {', '.join(known.labels)}")
    total = right = 0
    for sentence in re.split(r"[.!?\u3002\uff01\uff1f\n]+", CODE.sub(" ", completion)):
        words = [word for word in WORD.findall(sentence) if not word.isascii() or word.isalpha()]
        # In bytes: a Chinese character says as much as three letters.
        size = sum(len(word.encode()) for word in words)
        if size < SHORTEST_SENTENCE:
            continue
        total += size
        right += size * (known.classify(" ".join(words))[0] == language)
    return right / total if total else 1.0


@functools.cache
def identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ValueError(
            "verifier language needs the extra: pip install cohort[language]"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def repetition(completion: str, answer: str, *, ngram: int = 4) -> float:
    """0 when no run of `ngram` words comes twice, down to nearly -1 when all are the same: the
    share of runs that were there before, negative.

    >>> repetition("a b a b a b", "", ngram=2)
    -0.6
    """
    words = completion.casefold().split()
    runs = [tuple(words[at : at + ngram]) for at in range(len(words) - ngram + 1)]
    return -(1 - len(set(runs)) / len(runs)) if runs else 0.0


def length(
    completion: str, num_tokens: int, *, shortest: int = 0, longest: int = 0, slack: int = 1
) -> float:
    """0 for a completion of `shortest` to `longest` tokens (0: no bound), falling in a straight
    line to -1 where it is `slack` tokens too short or too long.

    >>> length("", 110, longest=100, slack=20)
    -0.5
    """
    excess = max(num_tokens - longest, 0) if longest else 0
    return -min(max(excess, shortest - num_tokens, 0) / max(slack, 1), 1.0)
