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


_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def age(seconds: float, *, stale: bool = False) -> str:
    """How old something is: "now", "5 min", "3 h, stale"."""
    told = next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), "now")
    return f"{told}, stale" if stale else told


def amount(money: float | None, currency: str) -> str:
    """A sum of money: "$0.02", "1.5 EUR"; "" for one that is not known."""
    if money is None:
        return ""
    plain_number = f"{money:.6f}".rstrip("0").rstrip(".")
    return f"${plain_number}" if currency == "USD" else f"{plain_number} {currency}"


def bytes_of(size: int) -> str:
    """A number of bytes: "512 B", "3.4 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
