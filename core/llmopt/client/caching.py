"""Where a client keeps what: the meaning of ``cache=``, and the stores that follow from it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import field, frozen

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.guarded import GuardedStore
from llmopt.cache.layered import LayeredStore
from llmopt.cache.memory import MemoryStore
from llmopt.cache.secret import install_secret
from llmopt.cache.store import CacheStore
from llmopt.config.tree import Config
from llmopt.engine.engine import Engine
from llmopt.errors import ConfigError
from llmopt.operations.cache_keys import CacheKeys
from llmopt.operations.embed_cache import TextCache
from llmopt.operations.memory import ModelMemory
from llmopt.providers.provider import Provider
from llmopt.providers.registry import Registry
from llmopt.values.calls import EmbedCall

CacheChoice = bool | str | os.PathLike[str] | CacheStore | None
"""What a client takes as ``cache=``."""

WORDS: Final = frozenset({"off", "memory", "disk"})
"""What is no path of a folder; write ./memory for a folder of that name."""

_log: Final = logging.getLogger("llmopt")
_METHODS: Final = ("get", "put", "remove", "clear", "size", "aclose")


@frozen(kw_only=True)
class CachePlan:
    """What is kept, and where.

    Attributes:
        catalogs: whether lists of models are kept.
        vectors: whether the vectors of texts are.
        disk: whether on disk, so that other processes have it too.
        folder: where on disk; None for where each provider says, or the user's cache folder.
        store: the user's own store, instead of all others.
    """

    catalogs: bool = True
    vectors: bool = False
    disk: bool = True
    folder: str | os.PathLike[str] | None = None
    store: CacheStore | None = field(default=None, repr=False)


def plan_of(choice: CacheChoice, config: Config, *, own_transport: bool) -> CachePlan:
    """What a client's ``cache=`` means, or where it is None, the configuration's ``cache``.

    Args:
        choice: what the client was given.
        config: its configuration.
        own_transport: whether the user's own transport answers. Who that is no address tells, so that
            without a word from the user nothing of it is given to other processes.

    Raises:
        ConfigError: it is none of what can be meant.
    """
    if choice is None:
        choice = config.cache
    if choice is None:
        return CachePlan(disk=not own_transport, folder=config.cache_dir)
    if isinstance(choice, bool):
        return CachePlan(catalogs=choice, vectors=choice, disk=choice, folder=config.cache_dir)
    if isinstance(choice, (str, os.PathLike)):
        return _named(choice, config)
    if all(callable(getattr(choice, name, None)) for name in _METHODS):
        return CachePlan(vectors=True, disk=False, folder=config.cache_dir, store=choice)
    raise ConfigError(
        f"cache must be True, False, 'memory', the path of a folder or an object with the methods of "
        f"llmopt.CacheStore, not {type(choice).__name__}."
    )


def _named(choice: str | os.PathLike[str], config: Config) -> CachePlan:
    word = os.fspath(choice)
    if not isinstance(word, str) or not word or "\0" in word:
        raise ConfigError("cache: this is no path of a folder.")
    if word == "off":
        return CachePlan(catalogs=False, disk=False)
    if word == "memory":
        return CachePlan(vectors=True, disk=False)
    return CachePlan(vectors=True, folder=config.cache_dir if word == "disk" else word)


class Caches:
    """The stores of one client, each made when first used.

    Args:
        plan: what is kept, and where.
        engine: of the client.
        registry: its providers.
    """

    def __init__(self, plan: CachePlan, engine: Engine, registry: Registry) -> None:
        self.plan: Final = plan
        self._engine: Final = engine
        self._registry: Final = registry
        self._disks: Final[dict[Path, GuardedStore]] = {}
        self._layers: Final[dict[Path, GuardedStore]] = {}
        self._given: Final = None if plan.store is None else GuardedStore(plan.store)
        self._memory: MemoryStore | None = None
        self._keys: CacheKeys | None = None

    def catalogs(self, provider: Provider) -> GuardedStore | None:
        """Where a provider's lists of models are kept beyond memory."""
        if self._given is not None:
            return self._given
        return self._disk(self._folder(provider)) if self.plan.disk else None

    def vectors(self, provider: Provider, *, lasting: bool) -> GuardedStore | None:
        """Where the vectors of its texts are, None where they are not kept.

        Args:
            provider: the provider.
            lasting: whether another process could find them.
        """
        endpoint = provider.endpoints[0]
        if not self.plan.vectors or not endpoint.flags.cache or endpoint.cache_ttl == 0:
            return None
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
        if self.vectors(provider, lasting=False) is None:
            return None
        keys = await self.keys()
        store = self.vectors(provider, lasting=keys.lasting(provider))
        try:
            found = keys.texts(provider, call)
        except Exception as error:  # noqa: BLE001 - what no key can be made for is not kept
            _log.debug("no key for texts of %s: %s", provider.name, type(error).__name__)
            return None
        return (
            None
            if store is None
            else TextCache(
                store,
                found,
                provider=provider.name,
                model=call.model,
                dimensions=call.dimensions,
                seconds=provider.endpoints[0].cache_ttl,
                memory=memory,
                clock=self._engine.clock,
                telemetry=self._engine.telemetry,
            )
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
