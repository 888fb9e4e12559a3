"""The byte order mark that a stream may begin with, wherever it is cut."""

from __future__ import annotations

import codecs
from typing import Final

_MARK: Final = codecs.BOM_UTF8


class Beginning:
    """Takes one byte order mark off the beginning of a stream.

    Attributes:
        over: whether the beginning has passed, so that nothing need be taken off any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._held = b""

    def strip(self, piece: bytes) -> bytes:
        """The piece without the mark; empty while it cannot be told yet whether there is one."""
        held = self._held + piece
        if len(held) < len(_MARK) and _MARK.startswith(held):
            self._held = held
            return b""
        self.over = True
        self._held = b""
        return held.removeprefix(_MARK)

    def rest(self) -> bytes:
        """What was held back when the stream ended."""
        self.over = True
        held, self._held = self._held, b""
        return held
