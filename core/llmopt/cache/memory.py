"""A store in this process's memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Final

from llmopt.cache.forks import watch_forks
from llmopt.cache.store import CacheItem, CacheSize
from llmopt.policies.lru import BoundedByBytes

MOST_BYTES: Final = 64 << 20


class MemoryStore:
    """Keeps what was used last. It belongs to one process and ends with it.

    Args:
        max_bytes: what it may take, all in all.
    """

    def __init__(self, max_bytes: int = MOST_BYTES) -> None:
        self._most: Final = max_bytes
        self._kept: Final = BoundedByBytes[bytes, CacheItem](max_bytes, _size)
        self._lock = threading.Lock()
        watch_forks(self)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        return self.look(keys)

    def look(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same at once."""
        with self._lock:
            found = map(self._kept.get, keys)
            return [None if item is None else item.value for item in found]

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`."""
        self.keep(items)

    def keep(self, items: Sequence[CacheItem]) -> None:
        """The same at once."""
        with self._lock:
            for item in items:
                self._kept.put(item.key, item)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        with self._lock:
            for key in keys:
                self._kept.remove(key)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        with self._lock:
            gone = [key for key, item in self._kept.items() if group in (None, item.group)]
            for key in gone:
                self._kept.remove(key)

    async def size(self) -> CacheSize:
        """See `CacheStore.size`."""
        with self._lock:
            return CacheSize(
                entries=len(self._kept),
                bytes=self._kept.bytes,
                most=self._most,
                evicted=self._kept.evicted,
                groups=Counter(item.group for _, item in self._kept.items()),
            )

    async def aclose(self) -> None:
        """Nothing is open."""

    def before_fork(self) -> None:
        """Nobody may be in the middle of something."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on, with what the parent had."""
        self._lock = threading.Lock()


def _size(item: CacheItem) -> int:
    return len(item.value)
