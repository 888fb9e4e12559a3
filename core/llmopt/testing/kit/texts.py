"""The texts that the kit sends, and how to find them in whatever body a plugin makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

TEXTS: Final = (
    "kit text 0, plain",
    'kit text 1, with "quotes", \\ and /',
    "kit text 2, Z\u00fcrich \u6771\u4eac \U0001f642",
    "kit text 3, a line\nbreak and a\ttab",
    "  kit text 4, with blanks around  ",
)
"""Distinct, and none is a part of another."""

MESSAGES: Final = (
    {"role": "system", "content": "kit message 0, be brief"},
    {"role": "user", "content": "kit message 1, how are you?"},
)


def strings(value: object) -> Iterator[str]:
    """All text in a JSON value, in order, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def scalars(value: object) -> Iterator[object]:
    """Everything in a JSON value that is neither an object nor a list, in order."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from scalars(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from scalars(inner)
    else:
        yield value


def order_of(texts: Sequence[str], value: object) -> list[int]:
    """Which of some texts stand in a JSON value, by their positions in ``texts``, in the value's order.

    A text counts where it stands whole, also inside a longer one: a provider may want a prefix.
    """
    return [index for found in strings(value) for index, text in enumerate(texts) if text in found]


def shown(index: int, texts: Sequence[str]) -> str:
    """A text's position and its beginning."""
    return f"text {index} of {len(texts)} ({texts[index][:24]!r})"
