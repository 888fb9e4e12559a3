"""A store in memory above another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from llmopt.cache.memory import MemoryStore
from llmopt.cache.store import CacheItem, CacheSize, CacheStore


class LayeredStore:
    """What was used last is had from memory, all else from below.

    Use of what memory has is not written down below: there it may be let go for others, and is in memory.

    Args:
        memory: the upper one.
        below: the lower one.
    """

    def __init__(self, memory: MemoryStore, below: CacheStore) -> None:
        self._memory: Final = memory
        self._below: Final = below

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        found = self._memory.look(keys)
        missed = [at for at, value in enumerate(found) if value is None]
        if not missed:
            return found
        values = await self._below.get([keys[at] for at in missed])
        lifted = []
        for at, value in zip(missed, values, strict=True):
            found[at] = value
            if value is not None:
                lifted.append(CacheItem(key=keys[at], group="", value=value, until=math.inf))
        self._memory.keep(lifted)
        return found

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`."""
        self._memory.keep(items)
        await self._below.put(items)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        await self._memory.remove(keys)
        await self._below.remove(keys)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        # Of what came from below the group is not known.
        await self._memory.clear()
        await self._below.clear(group)

    async def size(self) -> CacheSize:
        """How much there is below, which is what counts."""
        return await self._below.size()

    async def aclose(self) -> None:
        """See `CacheStore.aclose`."""
        await self._below.aclose()
