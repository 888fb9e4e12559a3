"""What the servers under test answer with, for them and for those who check it."""

from __future__ import annotations

from typing import Final

EVENT_PAUSE_S: Final = 0.02
"""Between two events of /events/N."""
_UNIT: Final = b"0123456789abcdef"


def pattern(size: int) -> bytes:
    """The body of this length."""
    return (_UNIT * (size // len(_UNIT) + 1))[:size]


def vector_of(text: str) -> list[int]:
    """A vector that tells the text: its length and its last two numbers, small and exact in float32."""
    number = int(text.rpartition(" ")[2])
    return [len(text), number % 1000, number // 1000]
