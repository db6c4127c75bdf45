"""Text of a model, made fit to be looked at. Escaping HTML is the templates' work (Jinja2 does it
for every value); this is for what a browser or a terminal would obey, or choke on."""

import unicodedata

MOST = 20_000
"""Characters of one text that a page shows; the rest is a link away."""

SEEN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
"""Control characters as their pictures: an escape sequence is shown, not obeyed."""


def visible(text: str) -> str:
    """Control characters, invisible ones and those that turn the direction of writing around, each
    as something to see.

    >>> visible("\\x1b[31mred\\u202e")
    '␛[31mred⟨U+202E⟩'
    """
    if text.isprintable():
        return text
    return "".join(map(_seen, text))


def _seen(char: str) -> str:
    if ord(char) in SEEN:
        return SEEN[ord(char)]
    # Format characters, lone surrogates, private use, not assigned.
    if unicodedata.category(char) in ("Cf", "Cs", "Co", "Cn", "Cc") and char not in "\n\t":
        return f"⟨U+{ord(char):04X}⟩"
    return char


def clipped(text: str, most: int = MOST) -> tuple[str, int]:
    """The visible beginning, and how many characters are left out."""
    return visible(text[:most]), max(len(text) - most, 0)


def number(value: float | None) -> str:
    """As short as it can be read: 0.5, 12.3, 1,234,567."""
    if value is None:
        return "-"
    if value != value:
        return "NaN"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
