"""Final answers: where they stand in a text, and whether two numbers or texts are the same.

Symbolic maths is in `maths.py`. Everything here takes time linear in the text.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

OPEN, CLOSE = "<answer>", "</answer>"
HASHES = re.compile(r"####\s*(.+)")
# A sign, digits with or without thousands commas, a fraction part; not the tail of a word ("AB2")
# or of a list ("0,1"). Linear in the text.
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\d[,.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)[-+]?\.\d+"
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
STATED = re.compile(
    r"\b(?:final answer|answer|option|choice|result)\s*(?:is\b|are\b|=|:)\s*:?\s*(?:equal to\s*)?",
    re.IGNORECASE,
)
MINUS = "\N{MINUS SIGN}"
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")
LATEX_NOISE = re.compile(r"\\\$|\{,\}|\\[,;! ]|\\(?:text|mathrm|mbox)\s*\{[^{}]{0,40}\}")
LATEX_TERM = re.compile(r"\\(?:d|t)?frac|\\sqrt")


def last_answer_block(text: str) -> str | None:
    """What the last complete `<answer>` block holds.

    >>> last_answer_block("<answer>3</answer> no: <answer> 4 </answer>")
    '4'
    """
    end = len(text)
    while (end := text.rfind(CLOSE, 0, end)) >= 0:
        before = text.rfind(CLOSE, 0, end) + 1  # 0 where there is none
        start = text.find(OPEN, before, end)
        if start >= 0:
            return text[start + len(OPEN) : end].strip()
    return None


def said(text: str) -> str:
    """What stands behind the last `</think>`: the thought before it states nothing."""
    return text.rpartition("</think>")[2]


def boxed(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each `\\boxed{...}` or `\\fbox{...}`, braces within it matched. One
    that is never closed is left out.

    >>> [content for *_, content in boxed(r"\\boxed{\\frac{1}{2}} or \\boxed{3")]
    ['\\\\frac{1}{2}']
    """
    found: list[tuple[int, int, str]] = []
    opened: list[int] = []
    starts = {match.end(): match.start() for match in BOX.finditer(text)}
    boxes: list[tuple[int, int]] = []
    for at, character in enumerate(text):
        if character == "{" and text[at - 1 : at] != "\\":
            opened.append(at)
        elif character == "}" and text[at - 1 : at] != "\\" and opened:
            begin = opened.pop()
            if begin in starts:
                boxes.append((begin, at))
    for begin, end in sorted(boxes):
        if not found or begin > found[-1][1]:  # a box within a box is part of its content
            found.append((starts[begin], end + 1, text[begin + 1 : end].strip()))
    return found


def stated(text: str) -> str | None:
    """What follows the last "the answer is" on its line.

    >>> stated("The answer is 4, I think. So the final answer is: Paris.")
    'Paris'
    """
    matches = list(STATED.finditer(text))
    if not matches:
        return None
    line = text[matches[-1].end() :].strip().splitlines()
    return line[0].strip().rstrip(".").strip("*").strip() or None if line else None


def reference(answer: str) -> str:
    """The reference answer itself: what follows `####` in GSM8K's layout, else the whole text.

    >>> reference("9 + 9 = 18, so he has 18.\\n#### 18")
    '18'
    """
    found = HASHES.findall(answer)
    return (found[-1] if found else answer).strip()


def marked_answer(text: str) -> str | None:
    """What is marked as the answer: the last answer block, else the last box, else what follows the
    last `####`."""
    block = last_answer_block(text)
    if block is not None:
        return block
    boxes = boxed(text)
    return boxes[-1][2] if boxes else hashed(text)


def final_answer(text: str) -> str | None:
    """The part of a completion that states its answer: the last answer block, else the last box,
    else what follows the last `####`, else the last number.

    >>> final_answer("3 + 4 = 7. #### 7"), final_answer(r"so \\boxed{12}, not 13")
    ('7', '12')
    """
    text = said(text)
    marked = marked_answer(text)
    if marked is not None:
        return marked
    numbers = list(NUMBER.finditer(text.replace(MINUS, "-")))
    if not numbers:
        return None
    last = numbers[-1]
    if text[max(last.start() - 1, 0) : last.start()] in ("/", "^"):
        return None  # a part of a fraction or a power
    if text[last.end() : last.end() + 1] == "}" and LATEX_TERM.search(text):
        return None  # a part of a fraction or root, not an answer by itself
    return last[0]


def fenced(text: str, labels: Sequence[str]) -> str | None:
    """The last fenced block with one of the labels; without any, the last that has no label.

    >>> fenced("```json\\n{}\\n```\\n```\\nbye\\n```", ["json"])
    '{}\\n'
    """
    labelled: str | None = None
    bare: str | None = None
    block: list[str] | None = None
    label = ""
    for line in text.splitlines(keepends=True):
        fence = line.strip()
        if not fence.startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block, label = [], fence[3:].strip().lower()
        elif fence == "```":
            if label in labels:
                labelled = "".join(block)
            elif not label:
                bare = "".join(block)
            block = None
        else:  # a block within a block: the outer one was never closed
            block, label = [], fence[3:].strip().lower()
    return bare if labelled is None else labelled


def hashed(text: str) -> str | None:
    """What follows the last `####` that is an answer and no heading: it begins like a number, or is
    one word, or is in LaTeX."""
    for found in reversed(HASHES.findall(text)):
        if len(found.split()) == 1 or re.match(r"[-+$€£\\(\[{]|\.?\d", found.replace(MINUS, "-")):
            return found.strip()
    return None


def as_number(text: str) -> Decimal | None:
    """The number that a text is, if it is one and nothing else (a currency sign, a percent sign
    and a full stop may stand around it).

    >>> as_number("$1,234.50.")
    Decimal('1234.50')
    """
    text = SPECIAL_TOKEN.sub(" ", text.replace(MINUS, "-"))
    inner = boxed(text)
    if len(inner) == 1:
        text = inner[0][2]
    text = LATEX_NOISE.sub("", text)
    bare = text.strip().removesuffix(".").strip("$€£% ").strip()
    worded = re.fullmatch(r"(\S{1,400}) [A-Za-z][A-Za-z. ]{0,30}", bare)  # "42 dollars"
    bare = worded[1] if worded else bare
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


PUNCTUATION = re.compile(r"[^\w\s.+#-]|[.](?!\d)")


def text(completion: str, answer: str) -> float:
    """1.0 when the stated answer is the reference as a text: case, punctuation and white space do
    not count. The answer stands in an answer block, a box, behind `####` or "the answer is"; else
    the whole completion is the answer.

    >>> text("So the answer is: New  York.", "new york")
    1.0
    """
    expected = _plain(reference(answer))
    stated_text = _stated_text(completion)
    sentence = re.split(r"[.!?]\s", stated_text)[0]  # "The answer is Paris. It is the capital."
    return float(bool(expected) and expected in (_plain(stated_text), _plain(sentence)))


def _stated_text(completion: str) -> str:
    rest = said(completion)
    marked = marked_answer(rest)
    return marked if marked is not None else stated(rest) or rest


def _plain(value: str) -> str:
    return " ".join(PUNCTUATION.sub(" ", _text_of_latex(value)).casefold().split())


def choice(completion: str, answer: str, *, letters: str = "ABCD") -> float:
    """1.0 when the option that is chosen last is the reference: "(B)", "B." or "B. Paris" all name
    option B. A letter within a sentence ("A dog ...") is no choice.

    Raises ValueError when the reference names no option.

    >>> choice("Not A. The answer is (C).", "C. 42"), choice("A dog has four legs", "A")
    (1.0, 0.0)
    """
    expected = _option(reference(answer), letters)
    if expected is None:
        raise ValueError(f"the reference answer {reference(answer)[:80]!r} names none of {letters}")
    return float(_chosen(completion, letters) == expected)


def _chosen(completion: str, letters: str) -> str | None:
    said_last = SPECIAL_TOKEN.sub(" ", said(completion))
    found = _option(_stated_text(said_last), letters)
    if found is not None:
        return found
    named = re.findall(
        rf"\b(?:option|choice|choose|pick|select)\s{{1,3}}\(?([{letters}])\b"
        rf"|\b([{letters}])\)?\s{{1,3}}is\s{{1,3}}(?:the\s{{1,3}})?(?:correct|right|best|answer)",
        said_last,
    )
    if named:
        return next(filter(None, named[-1])).upper()
    lines = [line for line in said_last.splitlines() if line.strip()]
    return _option(lines[-1], letters) if lines else None


def _option(value: str, letters: str) -> str | None:
    """The option that a text begins with, unless it goes on to a second one."""
    bare = _text_of_latex(value)
    match = re.match(
        rf"[\s*(\[\"'`]{{0,8}}(?:option|choice)?[\s*(\[\"'`]{{0,8}}([{letters}])"
        r"(?:[\s*]{0,8}[).:,;!\"'`\]*]|\s{0,3}-|\s{1,3}(?:because|since|is|as)\b|\s*$)",
        bare,
        re.IGNORECASE,
    )
    if match is None:
        return None
    hedged = re.match(
        rf"[\s,/)(*]{{0,5}}(?:and|or|,|/)?\s{{0,3}}\(?[{letters}]\b", bare[match.end() :]
    )
    return None if hedged else match[1].upper()


def _text_of_latex(value: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", value).strip(" $")
