"""Whether two mathematical answers are the same: math-verify's judgement, behind our extraction.

math-verify parses LaTeX and compares with sympy; either may hang, so its own timeouts (signals, in
the main thread only) are off and the scoring child's deadline holds. What it says of
`../shared/golden`'s cases, and where it is wrong, is in docs/rewards.md.
"""

import functools
import logging
import re
from typing import Any

from rewards import answers

THINK_E = re.compile(r"\\(?:mathrm|text|rm)\s*\{\s*e\s*\}")
DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
JOINED = re.compile(
    r"(?:\s|[$,;.&]|\\q?quad|\\[ ,;]|\\text\s*\{[^{}]{0,40}\b(?:and|or)\b[^{}]{0,40}\}|and|or)*"
)
FINALLY = re.compile(r"final answer is\s*:?", re.IGNORECASE)
DIGITS = re.compile(r"[-+]?\s*[\d.,]+\s*%?")
BRACKETED = re.compile(r"\[([^\[\],]{1,60})\][\s.$]*$")
DECIMALS = re.compile(r"(?<!\d)\d{0,40}\.(\d{4,40})")
PROSE = re.compile(r"\b[A-Za-z]{3,40}\s{1,5}[A-Za-z]{2,}")
MARKED = r"\\boxed|\\\(|\\\[|\\begin\{(?:align|equation|gather)"
MATHS = re.compile(rf"\$|{MARKED}")
"""Something says that a text is maths; `WRAPPED`: and a dollar of money does not."""
WRAPPED = re.compile(rf"(?<!\\)\$|{MARKED}")


def math(completion: str, answer: str) -> float:
    r"""1.0 when the completion's final answer equals the reference, as numbers, expressions, sets,
    intervals, matrices or equations.

    The final answer stands in the last `<answer>` block, else the last `\boxed{}`, else behind the
    last `####`, else where math-verify finds one. Raises ValueError when there is no reference.

    >>> math(r"so \boxed{\frac{2}{4}}", "0.5"), math("the answer is 3", "4")
    (1.0, 0.0)
    """
    expected = answers.reference(answer)
    if not expected:
        raise ValueError("the reference answer is empty")
    stated = final_expression(completion)
    if stated is None:
        return 0.0
    ours, theirs = _plain_number(stated), _plain_number(expected)
    if ours is not None and theirs is not None:
        return float(ours == theirs)
    return float(equal(stated, expected))


def final_expression(completion: str) -> str | None:
    r"""The part of a completion that states its answer, with its LaTeX.

    >>> final_expression(r"\boxed{1} was wrong. \boxed{2} and \boxed{3}.")
    '\\boxed{2} and \\boxed{3}'
    """
    text = completion
    block = answers.last_answer_block(answers.said(text))
    text = answers.said(text) if block is None else block
    text = answers.SPECIAL_TOKEN.sub(" ", text).strip()
    if not text:
        return None
    boxes = answers.boxed(text)
    finally_at = max((match.end() for match in FINALLY.finditer(text)), default=0)
    if boxes and finally_at < boxes[-1][0]:
        first = last = len(boxes) - 1
        while first and JOINED.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
            first -= 1
        return text[boxes[first][0] : boxes[last][1]]
    hashes = answers.hashed(text)
    if hashes is not None and block is None:
        return hashes
    bracket = BRACKETED.search(text)
    if bracket and block is None and not answers.NUMBER.search(text[: bracket.start()]):
        return bracket[1]
    return text


def equal(stated: str, expected: str) -> bool:
    """Whether two expressions are the same to math-verify."""
    if _bare(stated) and _bare(stated) == _bare(expected):
        return True
    library = _math_verify()
    gold = library.parse(_normal(expected if WRAPPED.search(expected) else f"${expected}$"))
    said = library.parse(_normal(stated))
    if library.verify(gold, said):
        return True
    # An exact reference may be given to four decimals and more.
    decimals = [len(digits) for digits in DECIMALS.findall(stated)]
    if decimals and not DECIMALS.search(expected) and re.search(r"frac|/|sqrt|pi", expected):
        return library.verify(gold, said, float_rounding=min(decimals))
    return False


def _unboxed(text: str) -> str:
    """The content of the box that a text is, if it is one and nothing else."""
    boxes = answers.boxed(text)
    return boxes[0][2] if len(boxes) == 1 and boxes[0][:2] == (0, len(text)) else text


def _bare(text: str) -> str:
    """Without its box, its dollars and its white space."""
    return "".join(_unboxed(text).replace("\\$", "").replace("$", "").replace("\\!", "").split())


def _plain_number(text: str) -> Any:
    text = _unboxed(text)
    return None if "%" in text else answers.as_number(text)


def _normal(text: str) -> str:
    """With what math-verify stumbles over put another way, and as maths where nothing says so."""
    text = THINK_E.sub("e", text).replace("\\fbox", "\\boxed")
    if "\\begin" not in text:
        text = DOUBLED.sub(r"\\", text)
    if DIGITS.fullmatch(text):
        return text
    if not MATHS.search(text) and not PROSE.search(text):
        text = f"${text}$"
    return text


class _Library:
    """math-verify with its timeouts off; sympy takes half a second to import."""

    def __init__(self) -> None:
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        from math_verify import parse, verify

        self._parse, self._verify = parse, verify

    def parse(self, text: str) -> list[Any]:
        return self._parse(text, parsing_timeout=0)  # 0 is off

    def verify(self, gold: list[Any], said: list[Any], float_rounding: int = 6) -> bool:
        return self._verify(
            gold,
            said,
            float_rounding=float_rounding,
            timeout_seconds=0,
            allow_set_relation_comp=True,
        )


@functools.cache
def _math_verify() -> _Library:
    return _Library()


def warm() -> None:
    """Load what the first answer would otherwise wait for."""
    equal("$x + 1$", "$1 + x$")
