"""Final answers: where they stand in a text, and whether two of them are the same.

Numbers and exact text only; symbolic maths is not here yet.
"""

import re
from decimal import Decimal, InvalidOperation

ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
HASHES = re.compile(r"####\s*(.+)")
# A sign, digits with or without thousands commas, a fraction part; not the tail of a word ("AB2")
# or of a list ("0,1"). Linear in the text.
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\d[,.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)[-+]?\.\d+"
)
LATEX_TERM = re.compile(r"\\(?:d|t)?frac|\\sqrt")


def last_answer_block(text: str) -> str | None:
    """What the last complete `<answer>` block holds.

    >>> last_answer_block("<answer>3</answer> no: <answer> 4 </answer>")
    '4'
    """
    blocks = ANSWER_BLOCK.findall(text)
    return blocks[-1].strip() if blocks else None


def reference(answer: str) -> str:
    """The reference answer itself: what follows `####` in GSM8K's layout, else the whole text.

    >>> reference("9 + 9 = 18, so he has 18.\\n#### 18")
    '18'
    """
    found = HASHES.findall(answer)
    return (found[-1] if found else answer).strip()


def final_answer(text: str) -> str | None:
    """The part of a completion that states its answer: the last answer block, else what follows
    the last `####`, else the last number.

    >>> final_answer("3 + 4 = 7. #### 7")
    '7'
    """
    block = last_answer_block(text)
    if block is not None:
        return block
    hashes = HASHES.findall(text)
    if hashes:
        return hashes[-1].strip()
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    if text[last.end() : last.end() + 1] == "}" and LATEX_TERM.search(text):
        return None  # a part of a fraction or root, not an answer by itself
    return last[0]


def as_number(text: str) -> Decimal | None:
    """The number that a text is, if it is one and nothing else (a currency sign, a percent sign
    and a full stop may stand around it).

    >>> as_number("$1,234.50.")
    Decimal('1234.50')
    """
    bare = text.strip().removesuffix(".").strip("$€£% ").strip()
    if not NUMBER.fullmatch(bare) or len(bare) > 400:
        return None
    try:
        return Decimal(bare.replace(",", ""))
    except InvalidOperation:
        return None


def _same_number(stated: str | None, answer: str) -> float:
    expected = as_number(reference(answer))
    if expected is None:
        raise ValueError(f"the reference answer {reference(answer)[:80]!r} is not a number")
    return float(stated is not None and as_number(stated) == expected)


def number(completion: str, answer: str) -> float:
    """1.0 when the completion's final answer equals the reference as a number, else 0.0.

    >>> number("so he pays <answer>$1,200</answer>", "#### 1200")
    1.0
    """
    return _same_number(final_answer(completion), answer)


def number_in_answer(completion: str, answer: str) -> float:
    """Like `number`, but only the last `<answer>` block counts.

    >>> number_in_answer("it is 42", "42")
    0.0
    """
    return _same_number(last_answer_block(completion), answer)


def exact(completion: str, answer: str) -> float:
    """1.0 when the whole completion is the reference, but for white space at the ends.

    >>> exact(" Paris\\n", "Paris")
    1.0
    """
    return float(completion.strip() == reference(answer))


def exact_in_answer(completion: str, answer: str) -> float:
    """1.0 when the last `<answer>` block is the reference, but for white space at the ends."""
    return float(last_answer_block(completion) == reference(answer))
