"""What a client works with: made, and imported, when it is first used."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.files import installation_secret
from llmopt.cache.store import LayeredStore, MemoryStore, SafeStore
from llmopt.client.options import CacheOptions, WhenOpen, waits_when_open
from llmopt.config.schema import Config
from llmopt.engine.engine import Engine
from llmopt.operations.cache_keys import CacheKeys, StoreSizeReporter
from llmopt.operations.chat import ChatOptions, ChatRun, Messages, chat_call
from llmopt.operations.embed import embed_call
from llmopt.operations.embed_batches import ModelState, state_file
from llmopt.operations.embed_cache import EmbeddingCache
from llmopt.operations.embed_run import EmbedRun
from llmopt.operations.models import BatchListModels, ModelLists
from llmopt.operations.models_cache import ModelListCache
from llmopt.policies.clock import Clock, Deadline
from llmopt.providers.registry import Provider, Registry
from llmopt.values.calls import EmbedCall
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx


# Where a client keeps what: the stores that follow from its `CacheOptions`.

_log: Final = logging.getLogger("llmopt")


class CacheStores:
    """The stores of one client, each made when first used.

    Args:
        plan: what is kept, and where.
        engine: of the client.
        registry: its providers.

    Attributes:
        size_reporter: reports the size of the stores after something was stored.
    """

    def __init__(self, plan: CacheOptions, engine: Engine, registry: Registry) -> None:
        self.plan: Final = plan
        self._engine: Final = engine
        self._registry: Final = registry
        self._disks: Final[dict[Path, SafeStore]] = {}
        self._layers: Final[dict[Path, SafeStore]] = {}
        self._given: Final = None if plan.store is None else SafeStore(plan.store)
        self._memory: MemoryStore | None = None
        self.size_reporter: Final = StoreSizeReporter(engine, self._in_use)
        self._keys: CacheKeys | None = None

    def catalogs(self, provider: Provider) -> SafeStore | None:
        """Where a provider's lists of models are kept beyond memory."""
        if self._given is not None:
            return self._given
        return self._disk(self._folder(provider)) if self.plan.disk else None

    def vectors(self, provider: Provider, *, persistent: bool) -> SafeStore:
        """Where the vectors of its texts are.

        Args:
            provider: the provider.
            persistent: whether another process could find them.
        """
        if self._given is not None and persistent:
            return self._given
        if self.plan.disk and persistent:
            return self._layered(self._folder(provider))
        return SafeStore(self._in_memory())

    def all(self) -> Iterable[SafeStore]:
        """All that outlive this client, those of providers that were not asked for yet left out."""
        if self._given is not None:
            return (self._given,)
        if self.plan.disk:
            self._disk(cache_folder(self.plan.folder))
        return tuple(self._disks.values())

    def _in_use(self) -> Iterable[SafeStore]:
        """Those that tell how much is kept."""
        if self._given is not None:
            return (self._given,)
        if self._disks or self._memory is None:
            return tuple(self._disks.values())
        return (SafeStore(self._memory),)

    async def keys(self) -> CacheKeys:
        """The maker of keys."""
        if self._keys is None:
            self._keys = await self._make_keys()
        return self._keys

    async def _make_keys(self) -> CacheKeys:
        secret = None
        if self.plan.disk or self._given is not None:
            secret = await asyncio.to_thread(installation_secret, cache_folder(self.plan.folder))
        return CacheKeys(secret or secrets.token_bytes(32), self._registry.identity, self._engine.endpoints)

    async def texts(self, provider: Provider, call: EmbedCall, state: ModelState) -> EmbeddingCache | None:
        """What is kept of texts that are embedded in one way; None where nothing is."""
        endpoint = provider.endpoints[0]
        if not self.plan.vectors or not endpoint.flags.cache or endpoint.cache_ttl == 0:
            return None
        keys = await self.keys()
        store = self.vectors(provider, persistent=keys.stable(provider))
        try:
            found = keys.texts(provider, call)
        except Exception as error:  # noqa: BLE001 - what no key can be made for is not kept
            _log.debug("no key for texts of %s: %s", provider.name, type(error).__name__)
            return None
        return EmbeddingCache(
            store,
            found,
            provider=provider.name,
            model=call.model,
            dimensions=call.dimensions,
            ttl_s=endpoint.cache_ttl,
            state=state,
            clock=self._engine.clock,
            telemetry=self._engine.telemetry,
            size_reporter=self.size_reporter,
        )

    def _folder(self, provider: Provider) -> Path:
        return cache_folder(provider.endpoints[0].cache_dir or self.plan.folder)

    def _disk(self, folder: Path) -> SafeStore:
        found = self._disks.get(folder)
        if found is None:
            clock = self._engine.clock
            found = self._disks[folder] = SafeStore(DiskStore(folder, wall=clock.wall, now=clock.now))
        return found

    def _layered(self, folder: Path) -> SafeStore:
        found = self._layers.get(folder)
        if found is None:
            layered = LayeredStore(self._in_memory(), self._disk(folder))
            found = self._layers[folder] = SafeStore(layered)
        return found

    def _in_memory(self) -> MemoryStore:
        if self._memory is None:
            self._memory = MemoryStore()
        return self._memory

    async def aclose(self) -> None:
        """Close the stores that are the client's own."""
        for store in self._disks.values():
            await store.aclose()


_CATALOG_S: Final = 30.0
"""A list of models that takes longer is no use to anybody who waits for it."""


class Components:
    """One engine, its providers, what is kept of them.

    Args:
        config: the configuration.
        plan: what is kept, and where.
        transport: as for the client, and so all that follow.
        plugins: wrapper plugins.
        on_event: gets every event.
        clock: the time.

    Attributes:
        registry: the providers.
        engine: sends requests.
        caches: the stores.
        catalogs: lists of models.
        batch: many of them at once.
        model_states: what was learned about models, by provider and model.
    """

    def __init__(
        self,
        config: Config,
        plan: CacheOptions,
        *,
        transport: httpx.AsyncBaseTransport | None,
        plugins: Sequence[object],
        on_event: OnEvent | None,
        clock: Clock | None,
    ) -> None:
        self.registry: Final = Registry(config, plugins, os.environ)
        self.engine: Final = Engine(transport=transport, on_event=on_event, clock=clock)
        self._learned: Final = state_file(config.cache_dir)
        self.caches: Final = CacheStores(plan, self.engine, self.registry)
        shelf = ModelListCache(self.caches.keys, self.caches.catalogs, self.engine.clock)
        self.catalogs: Final = ModelLists(
            self.engine, shelf, self.caches.all, self.caches.size_reporter, on=plan.catalogs
        )
        self.batch: Final = BatchListModels(self.engine, self.catalogs, self.registry.get)
        self.model_states: Final[dict[tuple[str, str], ModelState]] = {}

    async def aclose(self) -> None:
        """As the client's."""
        try:
            await self.catalogs.aclose()
        finally:
            try:
                await self.engine.aclose()
            finally:
                await self.caches.aclose()

    def embed_run(
        self,
        model: str,
        dimensions: int | None,
        input_type: str | None,
        deadline: float | None,
        extra: Mapping[str, Any] | None,
        when_open: WhenOpen,
    ) -> EmbedRun:
        """One call for vectors."""
        waits = waits_when_open(when_open)
        provider, name = self.registry.resolve(model)
        call = embed_call(name, dimensions=dimensions, input_type=input_type, extra=extra)
        state = self._model_state(provider, name)
        keeps = self.caches.plan.vectors
        return EmbedRun(
            self.engine,
            provider,
            call,
            state=state,
            deadline=self._deadline(provider, deadline),
            wait_when_open=waits,
            cache=(lambda: self.caches.texts(provider, call, state)) if keeps else None,
        )

    def chat_job(
        self,
        model: str,
        messages: Messages,
        parameters: ChatOptions,
        deadline: float | None,
        when_open: WhenOpen,
        extra: Mapping[str, Any] | None,
    ) -> ChatRun:
        """One call for an answer in a conversation."""
        waits = waits_when_open(when_open)
        provider, name = self.registry.resolve(model)
        return ChatRun(
            self.engine,
            provider,
            chat_call(name, messages, parameters, extra),
            estimator=self._model_state(provider, name).estimator,
            deadline=self._deadline(provider, deadline),
            wait_when_open=waits,
        )

    def catalog_deadline(self, provider: Provider, seconds: float | None) -> Deadline:
        """Of one list of models."""
        if seconds is None:
            seconds = provider.endpoints[0].timeouts.total or _CATALOG_S
        return self.engine.deadline(seconds)

    def _deadline(self, provider: Provider, seconds: float | None) -> Deadline:
        total = provider.endpoints[0].timeouts.total
        return self.engine.deadline(total if seconds is None else seconds)

    def _model_state(self, provider: Provider, model: str) -> ModelState:
        key = (provider.name, model)
        if key not in self.model_states:
            origins = " ".join(endpoint.origin for endpoint in provider.endpoints)
            self.model_states[key] = ModelState(f"{provider.name} {origins} {model}", self._learned)
        return self.model_states[key]
