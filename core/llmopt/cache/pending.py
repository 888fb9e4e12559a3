"""What is still to be written: bounded, and the oldest is dropped where there is too much."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from llmopt.cache.store import CacheItem
from llmopt.policies.lru import BoundedByBytes

_MOST_BYTES: Final = 64 << 20
_MOST_MARKS: Final = 100_000


class Pending:
    """Filled by anybody, emptied by the thread that writes. A key stands in it once, with its newest value."""

    def __init__(self) -> None:
        self._items: Final = BoundedByBytes[bytes, CacheItem](_MOST_BYTES, lambda item: len(item.value))
        self._used: set[bytes] = set()
        self._claimed = False
        self._lock: Final = threading.Lock()

    def __bool__(self) -> bool:
        return bool(len(self._items) or self._used)

    def add(self, items: Iterable[CacheItem]) -> None:
        """These are to be written."""
        with self._lock:
            for item in items:
                self._items.put(item.key, item)

    def look(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of these keys that are still to be written."""
        if not len(self._items):
            return {}
        with self._lock:
            found = ((key, self._items.get(key)) for key in keys)
            return {key: item.value for key, item in found if item is not None}

    def mark(self, keys: Sequence[bytes]) -> None:
        """These were used, which is to be written down."""
        with self._lock:
            if len(self._used) < _MOST_MARKS:
                self._used.update(keys)

    def drop(self, unwanted: Callable[[CacheItem], bool]) -> None:
        """Some need not be written any more."""
        with self._lock:
            for key in [key for key, item in self._items.items() if unwanted(item)]:
                self._items.remove(key)

    def take(self, most: int) -> tuple[list[CacheItem], list[bytes]]:
        """The oldest, at most so many, and what was used."""
        with self._lock:
            keys = [key for (key, _), _ in zip(self._items.items(), range(most), strict=False)]
            taken = [item for key in keys if (item := self._items.remove(key)) is not None]
            used, self._used = [*self._used], set()
            return taken, used

    def claim(self) -> bool:
        """Whether there is something to write and nobody does it yet; then the caller has to."""
        with self._lock:
            if self._claimed or not self:
                return False
            self._claimed = True
            return True

    def settle(self, *, stop: bool = False) -> bool:
        """Some was written; whether there is more, which whoever claimed it still has to write."""
        with self._lock:
            self._claimed = bool(self) and not stop
            return self._claimed
