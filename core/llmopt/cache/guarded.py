"""Any store, made harmless: whatever goes wrong with it is a miss, said once, and never a call's failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from llmopt.cache.store import CacheItem, CacheSize, CacheStore

T = TypeVar("T")

_log: Final = logging.getLogger("llmopt")
_PATIENCE_S: Final = 2.0
"""An answer that takes longer may as well be asked of the provider."""
_FAREWELL_S: Final = 10.0
"""What is still to be written is worth waiting for."""


class GuardedStore:
    """A store that does not fail. Closed, it is empty for good: nothing opens again behind a client's back.

    Args:
        store: what it guards.
    """

    def __init__(self, store: CacheStore) -> None:
        self._store: Final = store
        self._told = False
        self._closed = False

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, None for what is not there or cannot be had."""
        nothing: Sequence[bytes | None] = ()
        found = await self._try(lambda: self._store.get(keys), nothing)
        if isinstance(found, Sequence) and len(found) == len(keys):
            return [value if isinstance(value, bytes) else None for value in found]
        return [None] * len(keys)

    async def put(self, items: Sequence[CacheItem]) -> None:
        """Keep these, if it can be done."""
        await self._try(lambda: self._store.put(items), None)

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Let these go, if it can be done."""
        await self._try(lambda: self._store.remove(keys), None)

    async def clear(self, group: str | None = None) -> None:
        """Let a group go, or everything, if it can be done."""
        await self._try(lambda: self._store.clear(group), None)

    async def size(self) -> CacheSize:
        """How much there is, as far as can be told."""
        found = await self._try(self._store.size, CacheSize())
        return found if isinstance(found, CacheSize) else CacheSize()

    async def aclose(self) -> None:
        """See `CacheStore.aclose`."""
        if self._closed:
            return
        self._closed = True
        await self._try(self._store.aclose, None, patience=_FAREWELL_S)

    async def _try(
        self, act: Callable[[], Awaitable[T]], otherwise: T, *, patience: float = _PATIENCE_S
    ) -> T:
        if self._closed and act != self._store.aclose:
            return otherwise
        try:
            async with asyncio.timeout(patience):
                return await act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the call goes on without a cache
            self._tell(error)
            return otherwise

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            # The kind alone: the text of a foreign store's error may hold what it was given.
            _log.warning(
                "the cache %s failed (%s); calls go on without it.",
                type(self._store).__name__,
                type(error).__name__,
            )
