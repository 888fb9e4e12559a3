"""The implementation behind both clients: engine, providers, caches and learned state, wired together.

Imported at the first call, because most of llmopt comes with it. Requests are made by `llmopt.operations`; here a
call gets its provider, its deadline and the state that earlier calls left, which all calls share, also those from
several threads. There is no lock: the state of a model is made by an atomic ``dict.setdefault``. The environment is
read through the registry; the secret of the cache keys is read from, or written to, a file in a worker thread, or
else is random. Stores on disk are opened at first use. The clock is the engine's.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.files import installation_secret
from llmopt.cache.store import MemoryStore, SafeStore
from llmopt.client.options import CacheOptions, TokenCounters, call_headers
from llmopt.config.schema import Config
from llmopt.engine.attempt import CallScope
from llmopt.engine.engine import Engine
from llmopt.errors import ConfigError, InvalidInput, LLMOptError
from llmopt.log import CACHE, DEBUG
from llmopt.operations.cache_keys import CacheKeys, StoreSizeReporter
from llmopt.operations.call_events import observed
from llmopt.operations.call_options import ChatOptions, EmbedOptions
from llmopt.operations.chat import ChatRun, Messages, chat_call
from llmopt.operations.embed import embed, embed_call
from llmopt.operations.embed_batches import ModelState
from llmopt.operations.embed_cache import EmbeddingCache
from llmopt.operations.embed_run import EmbedRun
from llmopt.operations.learned_rates import LearnedRates, SavedRecord
from llmopt.operations.models import BatchListModels, CacheMode, ModelLists
from llmopt.operations.models_cache import ModelListCache
from llmopt.operations.token_estimate import TokenCounter
from llmopt.policies.clock import Clock, Deadline, valid_seconds
from llmopt.policies.tasks import require_asyncio, run_in_thread
from llmopt.providers.registry import Provider, Registry
from llmopt.values.calls import EmbedCall, PartOrder
from llmopt.values.catalog import Catalog
from llmopt.values.embeddings import Embeddings
from llmopt.values.events import OnEvent
from llmopt.values.resources import local_errors

if TYPE_CHECKING:
    import httpx

    from llmopt.operations.chat_stream import ChatStream
    from llmopt.operations.embed_stream import EmbedStream
    from llmopt.shared.state import SharedOptions

_RATES_TTL_S: Final = 7 * 24 * 3600.0
"""Limits of an account change with its tier, every few weeks; batch sizes, which are the server's, are kept for 30 days."""
_LIST_TIMEOUT_S: Final = 30.0
"""For one list of models, unless ``timeouts.total`` is configured."""
_BATCH_LIST_TIMEOUT_S: Final = 8.0
"""For each of many lists of models: shorter, because one provider that hangs delays the result for all."""
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "when_open": ("fail", "wait"),
    "priority": ("interactive", "bulk"),
    "errors": ("raise", "return"),
    "cached": ("auto", "refresh", "offline"),
    "order": ("input", "completion"),
}
"""The options of calls that are one of a few words."""


class Components:
    """One engine, its providers, its caches, and the operations over them.

    Args:
        config: the configuration.
        caching: what is cached, and where.
        transport: as for the client, and so all that follow.
        plugins: wrapper plugins.
        on_event: is called with every event.
        clock: source of time; None for the system's clocks.
        token_counter: counts the tokens of texts, for every model or by "provider/model".
        shared: the store of limits that several processes share; None for none.

    Attributes:
        registry: the providers.
        engine: sends requests.
        stores: the cache stores.
        model_lists: the operation of ``list_models``.
        model_states: what was learned of a model, by provider and model.
    """

    def __init__(
        self,
        config: Config,
        caching: CacheOptions,
        *,
        transport: httpx.AsyncBaseTransport | None,
        plugins: Sequence[object],
        on_event: OnEvent | None,
        clock: Clock | None,
        token_counter: TokenCounters | None = None,
        shared: SharedOptions | None = None,
    ) -> None:
        self.registry: Final = Registry(config, plugins, os.environ)
        self.engine: Final = Engine(transport=transport, on_event=on_event, clock=clock)
        if shared is not None:
            from llmopt.shared.sharing import Sharing

            self.engine.share(Sharing(shared, self.engine.clock, self.engine.telemetry.emit))
        self.stores: Final = CacheStores(caching, self.engine, self.registry)
        self.model_lists: Final = ModelLists(
            self.engine,
            ModelListCache(self.stores.keys, self.stores.for_model_lists, self.engine.clock),
            self.stores.persistent,
            self.stores.size_reporter,
            enabled=caching.model_lists,
        )
        self.model_states: Final[dict[tuple[str, str], ModelState]] = {}
        self.engine.telemetry.on_limits_changed = self._save_rates
        self._token_counters: Final = token_counter
        self._batch_list_models: Final = BatchListModels(self.engine, self.model_lists, self.registry.get)

    async def aclose(self) -> None:
        """Close everything, in the order of use; a failure of one step does not prevent the next."""
        require_asyncio()
        try:
            await self.model_lists.aclose()
        finally:
            try:
                await self.engine.aclose()
                for state in tuple(self.model_states.values()):
                    await state.rates.aclose()
                if self.engine.sharing is not None:
                    await self.engine.sharing.aclose()
            finally:
                # Last: calls that the engine ends may still store what they have received.
                await self.stores.aclose()

    async def embed(
        self, model: str, texts: Iterable[str] | AsyncIterable[str], options: EmbedOptions
    ) -> Embeddings:
        """See `llmopt.AsyncClient.embed`."""
        require_asyncio()
        run = self._embed_run(model, options)
        work = embed(run, texts, errors=options.errors)
        return await (observed(run, self.engine.clock, work, texts) if run.recording else work)

    def embed_stream(
        self, model: str, texts: Iterable[str] | AsyncIterable[str], options: EmbedOptions, order: PartOrder
    ) -> EmbedStream:
        """See `llmopt.AsyncClient.embed_iter`."""
        from llmopt.operations.embed_stream import EmbedStream

        check_word("order", order)
        return EmbedStream(self._embed_run(model, options), texts, errors=options.errors, order=order)

    def _embed_run(self, model: str, options: EmbedOptions) -> EmbedRun:
        check_word("errors", options.errors)
        check_word("priority", options.priority)
        check_word("when_open", options.when_open)
        if "numpy" not in sys.modules:
            # A result has vectors even where all texts failed, perhaps because no descriptor is free by then.
            with local_errors("numpy could not be imported"):
                import numpy  # noqa: F401, ICN001
        provider, name = self.registry.resolve(model, "embeddings")
        call = embed_call(name, options)
        if options.headers is not None:
            call = evolve(call, headers=_headers(provider, options.headers))
        state = self._model_state(provider, name)
        return EmbedRun(
            self.engine,
            provider,
            call,
            state=state,
            deadline=self._deadline(provider, options.deadline),
            wait_when_open=options.when_open == "wait",
            priority=options.priority,
            cache=(lambda: self.stores.embeddings(provider, call, state))
            if self.stores.caching.vectors
            else None,
        )

    def chat_run(self, model: str, messages: Messages, options: ChatOptions) -> ChatRun:
        """One call of ``chat`` or ``stream``, checked but not sent."""
        check_word("priority", options.priority)
        check_word("when_open", options.when_open)
        provider, name = self.registry.resolve(model, "chat")
        call = chat_call(name, messages, options)
        if options.headers is not None:
            call = evolve(call, headers=_headers(provider, options.headers))
        state = self._model_state(provider, name)
        return ChatRun(
            self.engine,
            provider,
            call,
            estimator=state.estimator,
            rates=state.rates,
            deadline=self._deadline(provider, options.deadline),
            wait_when_open=options.when_open == "wait",
            priority=options.priority,
        )

    def chat_stream(
        self, model: str, messages: Messages, options: ChatOptions, buffer_size: int
    ) -> ChatStream:
        """See `llmopt.AsyncClient.stream`."""
        from llmopt.operations.chat_stream import ChatStream

        return ChatStream(self.chat_run(model, messages, options), buffer_size)

    async def list_models(
        self, name: str, seconds: float | None, mode: CacheMode, headers: Mapping[str, str] | None = None
    ) -> Catalog:
        """See `llmopt.AsyncClient.list_models`."""
        require_asyncio()
        check_word("cached", mode)
        provider = self.registry.get(name)
        checked = _headers(provider, headers)
        if checked and mode == "offline":
            raise InvalidInput(
                "headers are given, but cached='offline' sends no request; leave out one of them."
            )
        if seconds is None:
            seconds = provider.endpoints[0].timeouts.total or _LIST_TIMEOUT_S
        scope = CallScope(self.engine.telemetry, "catalog", "", provider.endpoints[0])
        deadline = self.engine.deadline(seconds)
        work = self.model_lists.get(provider, deadline=deadline, mode=mode, headers=checked)
        return await observed(scope, self.engine.clock, work)

    async def batch_list_models(
        self, names: Iterable[str] | None, seconds: float | None, timeout: float | None, mode: CacheMode
    ) -> Mapping[str, Catalog | LLMOptError]:
        """See `llmopt.AsyncClient.batch_list_models`."""
        require_asyncio()
        check_word("cached", mode)
        # A str is an iterable of names of one letter each.
        if isinstance(names, str):
            raise ConfigError(f"providers must be a list of names, such as [{names!r:.40}], not one str.")
        if timeout is not None:
            valid_seconds(timeout, "timeout")

        def timeout_of(provider: Provider) -> float | None:
            return (
                timeout
                if timeout is not None
                else provider.endpoints[0].timeouts.total or _BATCH_LIST_TIMEOUT_S
            )

        scope = CallScope(self.engine.telemetry, "catalog", "")
        work = self._batch_list_models.run(
            self.registry.names() if names is None else names,
            deadline=self.engine.deadline(seconds),
            timeout_of=timeout_of,
            mode=mode,
        )
        return await observed(scope, self.engine.clock, work)

    def fresh_models(self, name: str) -> Catalog | None:
        """A fresh list of models in memory, from any thread; None if there is none, or if it must be refreshed."""
        provider = self.registry.get_created(name)
        return None if provider is None else self.model_lists.peek(provider)

    async def invalidate(self, name: str | None) -> None:
        """See `llmopt.AsyncClient.invalidate`."""
        require_asyncio()
        for each in self.registry.names() if name is None else (name,):
            # Opens the provider's store, which may be configured to be in a directory of its own.
            with suppress(LLMOptError):
                self.stores.for_model_lists(self.registry.get(each))
        await self.model_lists.invalidate(name)

    def _deadline(self, provider: Provider, seconds: float | None) -> Deadline:
        total = provider.endpoints[0].timeouts.total
        return self.engine.deadline(total if seconds is None else seconds)

    def _token_counter(self, model: str) -> TokenCounter | None:
        counters = self._token_counters
        return counters.get(model) if isinstance(counters, Mapping) else counters

    def _model_state(self, provider: Provider, model: str) -> ModelState:
        key = (provider.name, model)
        state = self.model_states.get(key)
        if state is None:
            # The servers are part of the name: another server behind the same entry has other limits.
            origins = " ".join(endpoint.origin for endpoint in provider.endpoints)
            state = ModelState(
                provider.name,
                f"{provider.name} {origins} {model}",
                lambda: self.stores.for_learned(provider),
                self.engine.clock,
                self._learned_rates(provider, model),
                self._token_counter(f"{provider.name}/{model}"),
            )
            # Several threads of a synchronous client may come here at once; all get the same state.
            state = self.model_states.setdefault(key, state)
        return state

    def _learned_rates(self, provider: Provider, model: str) -> LearnedRates:
        async def open_record() -> SavedRecord | None:
            store = self.stores.for_learned(provider)
            if store is None or provider.endpoints[0].in_process:
                return None
            keys = await self.stores.keys()
            # An endpoint that cannot be used is the error of the call, which is not hidden here.
            with suppress(LLMOptError):
                if keys.stable(provider):
                    key, group = keys.learned_rates(provider, model), f"limits/{provider.name}"
                    return SavedRecord(store, key, group, _RATES_TTL_S, self.engine.clock.wall)
            return None

        return LearnedRates(lambda: self.engine.endpoints(provider), open_record, self.engine.clock.now)

    def _save_rates(self, provider: str, model: str) -> None:
        state = self.model_states.get((provider, model))
        if state is not None:
            state.rates.save_soon()


def _headers(provider: Provider, headers: Mapping[str, str] | None) -> Mapping[str, str]:
    return call_headers(headers, {each.auth.lower() for each in provider.endpoints})


def check_word(option: str, value: object) -> None:
    """Refuse a value that is none of the words of an option.

    Raises:
        ConfigError: it is none of them; the message lists them.
    """
    words = _WORDS[option]
    if value not in words:
        *others, last = map(repr, words)
        raise ConfigError(f"{option} must be {', '.join(others)} or {last}, not {value!r:.40}.")


class CacheStores:
    """The stores of one client, each opened when first used.

    Args:
        caching: what is cached, and where.
        engine: the client's engine.
        registry: the client's providers.

    Attributes:
        caching: as given.
        size_reporter: reports the size of the stores after something was stored.
    """

    def __init__(self, caching: CacheOptions, engine: Engine, registry: Registry) -> None:
        self.caching: Final = caching
        self.size_reporter: Final = StoreSizeReporter(engine, self._in_use)
        self._engine: Final = engine
        self._registry: Final = registry
        self._custom: Final = None if caching.store is None else SafeStore(caching.store)
        # By directory: each provider entry may have a ``cache_dir`` of its own.
        self._disk: Final[dict[Path, SafeStore]] = {}
        self._memory: Final = MemoryStore()
        self._keys: CacheKeys | None = None

    def for_model_lists(self, provider: Provider) -> SafeStore | None:
        """Where the list of a provider's models is stored; None if it is in memory only."""
        if self._custom is not None:
            return self._custom
        return self._disk_store(self._folder(provider)) if self.caching.disk else None

    def for_learned(self, provider: Provider) -> SafeStore | None:
        """Where learned batch sizes and rate limits are stored; None if they are in memory only."""
        endpoint = provider.endpoints[0]
        return self.for_model_lists(provider) if endpoint.flags.cache and endpoint.cache_ttl != 0 else None

    def for_vectors(self, provider: Provider, *, persistent: bool) -> SafeStore:
        """Where vectors are stored.

        Args:
            provider: the provider that made them.
            persistent: whether another process could compute the same keys; otherwise memory is enough.
        """
        store = self.for_model_lists(provider) if persistent else None
        if store is None:
            return SafeStore(self._memory)
        return store if store is self._custom else SafeStore(store, self._memory)

    def persistent(self) -> Iterable[SafeStore]:
        """The stores that outlive this client, apart from those of providers that were not used yet."""
        if self._custom is not None:
            return (self._custom,)
        if self.caching.disk:
            self._disk_store(cache_folder(self.caching.folder))
        return tuple(self._disk.values())

    async def keys(self) -> CacheKeys:
        """Makes cache keys; the same object at every call."""
        if self._keys is None:
            secret = None
            if self.caching.disk or self._custom is not None:
                # The file is read, or made, in a thread: it may be on a slow disk.
                secret = await run_in_thread(installation_secret, cache_folder(self.caching.folder))
            self._keys = CacheKeys(
                secret or secrets.token_bytes(32), self._registry.identity, self._engine.endpoints
            )
        return self._keys

    async def embeddings(
        self, provider: Provider, call: EmbedCall, state: ModelState
    ) -> EmbeddingCache | None:
        """The cache for the vectors of one kind of call; None if they are not cached."""
        endpoint = provider.endpoints[0]
        if not self.caching.vectors or not endpoint.flags.cache or endpoint.cache_ttl == 0:
            return None
        keys = await self.keys()
        store = self.for_vectors(provider, persistent=keys.stable(provider))
        try:
            text_keys = keys.texts(provider, call)
        except Exception as error:  # noqa: BLE001 - a plugin's hook may fail in any way; then nothing is cached
            message = f"no cache key for texts of {provider.name}: {type(error).__name__}"
            CACHE.write(DEBUG, "cache.no_key", message, {"provider": provider.name})
            return None
        return EmbeddingCache(
            store,
            text_keys,
            provider=provider.name,
            model=call.model,
            dimensions=call.dimensions,
            ttl_s=endpoint.cache_ttl,
            state=state,
            clock=self._engine.clock,
            telemetry=self._engine.telemetry,
            size_reporter=self.size_reporter,
        )

    async def aclose(self) -> None:
        """Close the stores that this client opened; a store given by the user is the user's to close."""
        for store in self._disk.values():
            await store.aclose()

    def _in_use(self) -> Iterable[SafeStore]:
        """The stores whose size is reported."""
        if self._custom is not None:
            return (self._custom,)
        in_memory = (SafeStore(self._memory),) if self.caching.vectors else ()
        return tuple(self._disk.values()) or in_memory

    def _folder(self, provider: Provider) -> Path:
        return cache_folder(provider.endpoints[0].cache_dir or self.caching.folder)

    def _disk_store(self, folder: Path) -> SafeStore:
        store = self._disk.get(folder)
        if store is None:
            clock = self._engine.clock
            store = self._disk[folder] = SafeStore(DiskStore(folder, wall=clock.wall, now=clock.now))
        return store
