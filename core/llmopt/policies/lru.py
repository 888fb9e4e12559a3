"""What was used last is kept, up to so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_EACH: Final = 200
"""Bytes that an entry takes besides its value: without them a million empty ones would be free."""


class BoundedByBytes(Generic[K, V]):
    """Values by key, the least recently used of which go first. Not for several threads at once.

    Args:
        most: bytes of all values together, with what keeping them takes.
        size: bytes of one value.

    Attributes:
        bytes: what is in use.
        evicted: how many had to go since the beginning.
    """

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most: Final = most
        self._size: Final = size
        # With its size as it came: a value may change while it is kept.
        self._kept: Final[OrderedDict[K, tuple[V, int]]] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> Iterator[tuple[K, V]]:
        """All of it, what was used last at the end. Looking is not using."""
        return ((key, value) for key, (value, _) in self._kept.items())

    def get(self, key: K) -> V | None:
        """A value, used just now; None when it is not there."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V) -> int:
        """Keep a value, unless it alone is too large; how many others had to go for it."""
        self.remove(key)
        size = self._size(value) + _EACH
        if size > self._most:
            return 0
        self._kept[key] = value, size
        self.bytes += size
        gone = 0
        while self.bytes > self._most:
            _, (_, oldest) = self._kept.popitem(last=False)
            self.bytes -= oldest
            gone += 1
        self.evicted += gone
        return gone

    def remove(self, key: K) -> V | None:
        """Let a value go; what it was, None when it was not there."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self.bytes -= found[1]
        return found[0]

    def clear(self) -> None:
        """Let all go."""
        self._kept.clear()
        self.bytes = 0
