"""The body of an answer whose length is known, filled by the socket itself: no piece is copied twice."""

from __future__ import annotations

from io import BytesIO
from typing import Final

_AT_ONCE: Final = 1 << 20
"""Half a millisecond of the event loop."""


class Whole:
    """Room for so many bytes.

    Args:
        size: length of the body, above 0.
    """

    __slots__ = ("_at", "_file", "_size", "_view")

    def __init__(self, size: int) -> None:
        # A file in memory, for what it hands out at the end is its own memory as bytes, not a copy.
        self._file: Final = BytesIO(bytes(size))
        self._view: Final = self._file.getbuffer()
        self._size: Final = size
        self._at = 0

    @property
    def room(self) -> memoryview:
        """Where the next bytes go: some of it, for the kernel fills whatever it is given as long as more comes."""
        return self._view[self._at : self._at + _AT_ONCE]

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self._size - self._at

    @property
    def full(self) -> bool:
        """Whether all bytes are there."""
        return self._at == self._size

    def put(self, data: bytes | memoryview) -> None:
        """Bytes that came elsewhere; no more than there is room for."""
        self._view[self._at : self._at + len(data)] = data
        self._at += len(data)

    def wrote(self, count: int) -> None:
        """So many bytes were written into `room`."""
        self._at += count

    def take(self) -> bytes:
        """The body. The room must not be written to any more."""
        self._view.release()
        return self._file.getvalue()
