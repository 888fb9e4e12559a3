"""How values show themselves: sizes and names, never contents that may be secret or large."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any


def size(value: Sized) -> str:
    """The number of items or bytes alone."""
    return f"<{len(value)}>"


def names(value: Mapping[str, Any]) -> str:
    """The keys alone."""
    return f"<{', '.join(value)}>"
