"""How values show themselves: sizes and names, never contents that may be secret or large."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from typing import Any, Final

_TOKEN: Final = re.compile(r"[\w.:/-]{1,64}\Z", re.ASCII)


def size(value: Sized) -> str:
    """The number of items or bytes alone."""
    return f"<{len(value)}>"


def names(value: Mapping[str, Any]) -> str:
    """The keys alone."""
    return f"<{', '.join(value)}>"


def token(value: str | None) -> str:
    """A code as it is; of a sentence in its place the size alone, since it may repeat the request."""
    return repr(value) if value is None or _TOKEN.match(value) else size(value)
