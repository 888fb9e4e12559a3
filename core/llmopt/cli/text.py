"""Text for people: numbers, and what others wrote made safe for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MOST_NAMES: Final = 20
_LONGEST_NAME: Final = 40


def plain(text: str, *, lines: bool = False) -> str:
    """Text without characters that move a cursor or change a colour.

    Args:
        text: what a provider, a file or a user wrote.
        lines: whether line breaks are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def number(value: float) -> str:
    """A whole number with its thousands marked."""
    return f"{round(value):,}"


def count(value: int, noun: str) -> str:
    """A number with its noun: "1 text", "2 texts"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def listed(names: Iterable[object]) -> str:
    """Names in quotes, few and short enough for a message."""
    shown = [repr(str(name)) for name in names]
    cut = [
        name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…'" for name in shown[:_MOST_NAMES]
    ]
    more = len(shown) - len(cut)
    return ", ".join([*cut, *([f"and {more} more"] if more > 0 else [])])
