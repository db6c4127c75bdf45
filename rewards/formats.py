"""Whether a completion has the shape that was asked for. The reference answer plays no part."""

import re

from rewards.answers import as_number

TAG = re.compile(r"</?(?:think|answer)>")
WHOLE = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def _blocks(completion: str) -> tuple[str, str] | None:
    """(thought, answer) of a completion that is one think block and one answer block, no more."""
    if len(TAG.findall(completion)) != 4:
        return None
    match = WHOLE.fullmatch(completion)
    return (match[1], match[2]) if match else None


def think_answer(completion: str, answer: str) -> float:
    """1.0 when the whole completion is one `<think>` block and one `<answer>` block that says
    something, in that order and with nothing around them.

    >>> think_answer("<think>7+5=12</think><answer>12</answer>", "")
    1.0
    """
    blocks = _blocks(completion)
    return float(blocks is not None and bool(blocks[1].strip()))


def think_number(completion: str, answer: str) -> float:
    """Like `think_answer`, and the answer block holds a number and nothing else.

    >>> think_number("<think></think><answer>twelve</answer>", "")
    0.0
    """
    blocks = _blocks(completion)
    return float(blocks is not None and as_number(blocks[1]) is not None)
