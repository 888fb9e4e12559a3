"""Where a client keeps what: the stores that follow from its `CachePlan`."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.guarded import GuardedStore
from llmopt.cache.layered import LayeredStore
from llmopt.cache.memory import MemoryStore
from llmopt.cache.secret import install_secret
from llmopt.client.cache_plan import CachePlan
from llmopt.engine.engine import Engine
from llmopt.operations.cache_keys import CacheKeys
from llmopt.operations.embed_cache import TextCache
from llmopt.operations.memory import ModelMemory
from llmopt.operations.store_watch import StoreWatch
from llmopt.providers.provider import Provider
from llmopt.providers.registry import Registry
from llmopt.values.calls import EmbedCall

_log: Final = logging.getLogger("llmopt")


class Caches:
    """The stores of one client, each made when first used.

    Args:
        plan: what is kept, and where.
        engine: of the client.
        registry: its providers.

    Attributes:
        watch: told of what is put into the stores.
    """

    def __init__(self, plan: CachePlan, engine: Engine, registry: Registry) -> None:
        self.plan: Final = plan
        self._engine: Final = engine
        self._registry: Final = registry
        self._disks: Final[dict[Path, GuardedStore]] = {}
        self._layers: Final[dict[Path, GuardedStore]] = {}
        self._given: Final = None if plan.store is None else GuardedStore(plan.store)
        self._memory: MemoryStore | None = None
        self.watch: Final = StoreWatch(engine, self._in_use)
        self._keys: CacheKeys | None = None

    def catalogs(self, provider: Provider) -> GuardedStore | None:
        """Where a provider's lists of models are kept beyond memory."""
        if self._given is not None:
            return self._given
        return self._disk(self._folder(provider)) if self.plan.disk else None

    def vectors(self, provider: Provider, *, lasting: bool) -> GuardedStore:
        """Where the vectors of its texts are.

        Args:
            provider: the provider.
            lasting: whether another process could find them.
        """
        if self._given is not None and lasting:
            return self._given
        if self.plan.disk and lasting:
            return self._layered(self._folder(provider))
        return GuardedStore(self._in_memory())

    def all(self) -> Iterable[GuardedStore]:
        """All that outlive this client, those of providers that were not asked for yet left out."""
        if self._given is not None:
            return (self._given,)
        if self.plan.disk:
            self._disk(cache_folder(self.plan.folder))
        return tuple(self._disks.values())

    def _in_use(self) -> Iterable[GuardedStore]:
        """Those that tell how much is kept."""
        if self._given is not None:
            return (self._given,)
        if self._disks or self._memory is None:
            return tuple(self._disks.values())
        return (GuardedStore(self._memory),)

    async def keys(self) -> CacheKeys:
        """The maker of keys."""
        if self._keys is None:
            self._keys = await self._make_keys()
        return self._keys

    async def _make_keys(self) -> CacheKeys:
        secret = None
        if self.plan.disk or self._given is not None:
            secret = await asyncio.to_thread(install_secret, cache_folder(self.plan.folder))
        return CacheKeys(secret or secrets.token_bytes(32), self._registry.identity, self._engine.endpoints)

    async def texts(self, provider: Provider, call: EmbedCall, memory: ModelMemory) -> TextCache | None:
        """What is kept of texts that are embedded in one way; None where nothing is."""
        endpoint = provider.endpoints[0]
        if not self.plan.vectors or not endpoint.flags.cache or endpoint.cache_ttl == 0:
            return None
        keys = await self.keys()
        store = self.vectors(provider, lasting=keys.lasting(provider))
        try:
            found = keys.texts(provider, call)
        except Exception as error:  # noqa: BLE001 - what no key can be made for is not kept
            _log.debug("no key for texts of %s: %s", provider.name, type(error).__name__)
            return None
        return TextCache(
            store,
            found,
            provider=provider.name,
            model=call.model,
            dimensions=call.dimensions,
            seconds=endpoint.cache_ttl,
            memory=memory,
            clock=self._engine.clock,
            telemetry=self._engine.telemetry,
            watch=self.watch,
        )

    def _folder(self, provider: Provider) -> Path:
        return cache_folder(provider.endpoints[0].cache_dir or self.plan.folder)

    def _disk(self, folder: Path) -> GuardedStore:
        found = self._disks.get(folder)
        if found is None:
            clock = self._engine.clock
            found = self._disks[folder] = GuardedStore(DiskStore(folder, wall=clock.wall, now=clock.now))
        return found

    def _layered(self, folder: Path) -> GuardedStore:
        found = self._layers.get(folder)
        if found is None:
            layered = LayeredStore(self._in_memory(), self._disk(folder))
            found = self._layers[folder] = GuardedStore(layered)
        return found

    def _in_memory(self) -> MemoryStore:
        if self._memory is None:
            self._memory = MemoryStore()
        return self._memory

    async def aclose(self) -> None:
        """Close the stores that are the client's own."""
        for store in self._disks.values():
            await store.aclose()
