"""How full the stores are, told now and then to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from llmopt.cache.guarded import GuardedStore
from llmopt.engine.engine import Engine
from llmopt.values.cache_events import CacheEviction, CacheKind, CacheSized

_EVERY_S: Final = 10.0
"""Counting takes its time; nobody needs it more often."""


class StoreWatch:
    """Looks at stores after something was put into them.

    Args:
        engine: its clock and its telemetry.
        stores: those in use.
    """

    def __init__(self, engine: Engine, stores: Callable[[], Iterable[GuardedStore]]) -> None:
        self._telemetry: Final = engine.telemetry
        self._now: Final = engine.clock.now
        self._stores: Final = stores
        self._looked = float("-inf")
        self._evicted = 0

    async def put(self, kind: CacheKind) -> None:
        """Something was put into one of them."""
        if not self._telemetry.on or self._now() < self._looked + _EVERY_S:
            return
        self._looked = self._now()
        sizes = [await store.size() for store in self._stores()]
        for size in sizes:
            self._telemetry.emit(
                CacheSized(provider="", cache=kind, items=size.entries, size=size.bytes, most=size.most)
            )
        evicted = sum(size.evicted for size in sizes)
        if evicted > self._evicted:
            gone, self._evicted = evicted - self._evicted, evicted
            self._telemetry.emit(CacheEviction(provider="", cache=kind, items=gone))
