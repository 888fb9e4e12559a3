"""Listing models: from the cache, from the provider, or both; for one provider or for many at once.

`llmopt.cache.freshness` decides whether a cached list is served, refreshed or fetched first; this file carries the
decision out. Concurrent callers on one event loop share one request, unless ``flags.coalesce`` is off, and refreshes
run in background tasks, four at a time on each loop.

It awaits the engine and the cache, and writes a line to the log; `BatchListModels` also looks up each provider, which
reads the metadata of plugins and imports a plugin at its first use. Refreshes are tasks on the event loop that needed
them, and `aclose` cancels those of the running loop only. All calls share the cached entries, with the last failure of
each, without a lock; `peek` may be called from any thread. Durations are measured by the engine's monotonic clock, the
age of a list also by its calendar. The user's listener is called on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from attrs import evolve

from llmopt.cache.freshness import Decision
from llmopt.cache.store import SafeStore
from llmopt.engine.attempt import CallScope
from llmopt.engine.engine import Engine
from llmopt.errors import (
    CircuitOpen,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
    LocalRejection,
    NotCached,
    NotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
    ServerError,
    TransportError,
)
from llmopt.log import REQUEST, WARNING
from llmopt.operations.cache_keys import StoreSizeReporter
from llmopt.operations.call_events import CallEvents
from llmopt.operations.models_cache import CachedList, ListScope, ModelListCache, fetch_model_list
from llmopt.policies.clock import Deadline
from llmopt.policies.tasks import PerLoop, TaskSet
from llmopt.providers.registry import Provider
from llmopt.values.catalog import Catalog
from llmopt.values.events import (
    CacheHit,
    CacheMiss,
    CacheRefresh,
    CacheStale,
    CallStart,
    CatalogBatch,
    CatalogDiscover,
)

CacheMode = Literal["auto", "refresh", "offline"]
"""How a caller uses the cache: normally, not at all (always fetch), or alone (never fetch)."""
_MAX_CONCURRENT_REFRESHES: Final = 4
_MAX_CONCURRENT_PROVIDERS: Final = 10
_REFRESH_TIMEOUT_S: Final = 30.0
_FAILURE_MEMORY_S: Final = 5.0
"""A batch does not ask a provider again that failed less than this ago."""
_TEMPORARY_ERRORS: Final = (
    TransportError,
    ServerError,
    Overloaded,
    RequestTimeout,
    RateLimited,
    QuotaExhausted,
    CircuitOpen,
    InvalidResponse,
    DeadlineExceeded,
)
"""After these an older list is served. After a refusal (401, 403, 404) it is not: the key may have lost access to it."""


class ModelLists:
    """The lists of models of all providers of one client.

    Args:
        engine: sends the requests.
        cache: the cached lists.
        stores: gives all stores that lists may be in.
        size_reporter: reports their size after something was stored.
        enabled: whether lists are cached at all.
    """

    def __init__(
        self,
        engine: Engine,
        cache: ModelListCache,
        stores: Callable[[], Iterable[SafeStore]],
        size_reporter: StoreSizeReporter,
        *,
        enabled: bool = True,
    ) -> None:
        self._engine: Final = engine
        self._cache: Final = cache
        self._stores: Final = stores
        self._size_reporter: Final = size_reporter
        self._enabled: Final = enabled
        self._now: Final = engine.clock.now
        self._telemetry: Final = engine.telemetry
        self._refreshes: Final = TaskSet()
        self._refresh_slots: Final = PerLoop(lambda: asyncio.Semaphore(_MAX_CONCURRENT_REFRESHES))

    async def get(
        self,
        provider: Provider,
        *,
        deadline: Deadline,
        mode: CacheMode = "auto",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Catalog:
        """All models of one provider. With headers of the call, on which they may depend, nothing is cached or shared.

        Raises:
            NotCached: ``mode`` is "offline" and no list is cached.
            InvalidInput: the provider has no list, and its plugin knows no models.
            LLMOptError: the provider gave no list, and no cached one may be served.
        """
        self._engine.check_open(provider)
        if (known := self._known(provider)) is not None:
            return known
        if headers:
            return await self._fetch(provider, None, deadline, headers)
        if not self._uses_cache(provider):
            if mode == "offline":
                raise _not_cached(provider)
            return await self._share(provider, lambda: self._fetch(provider, None, deadline), deadline)
        entry = await self._cache.load(provider)
        if mode == "offline":
            if entry.catalog is None:
                raise _not_cached(provider)
            return self._serve(provider, entry.catalog, entry.life.peek(), cause="offline")
        if mode == "refresh":
            return await self._fetch_shared(provider, entry, deadline)
        return await self._get_cached_or_fetch(provider, entry, deadline)

    def _known(self, provider: Provider) -> Catalog | None:
        """The models that the plugin knows of a provider without a list; None for a provider that has one."""
        if provider.operations is None or "catalog" in provider.operations:
            return None
        models = provider.endpoints[0].models
        if not models:
            raise provider.lacks("catalog")
        own = tuple(evolve(each, provider=provider.name) for each in models)
        scope = ListScope(self._engine, provider)
        scope.emit(CatalogDiscover, outcome="ok", source="plugin", models=len(own))
        return Catalog(provider=provider.name, models=own, known=True)

    async def _get_cached_or_fetch(
        self, provider: Provider, entry: CachedList, deadline: Deadline
    ) -> Catalog:
        decision = entry.life.decide()
        cached = self._serve_without_waiting(provider, entry, decision)
        if cached is not None:
            return cached
        ListScope(self._engine, provider).emit(CacheMiss, cache="catalog")
        try:
            return await self._fetch_shared(provider, entry, deadline)
        except LLMOptError as error:
            # The entry is read again: the list may have been dropped, or stored by another call, in the meantime.
            catalog = entry.catalog
            if (
                decision.action != "fetch_or_serve"
                or not isinstance(error, _TEMPORARY_ERRORS)
                or catalog is None
            ):
                raise
            return self._serve(provider, catalog, decision, cause=type(error).__name__)

    def get_without_waiting(self, provider: Provider) -> Catalog | LLMOptError | None:
        """A cached list or a remembered error; None if a request or the store is needed.

        A recent failure counts only if no list is cached.
        """
        self._engine.check_open(provider)
        entry = self._cache.peek(provider) if self._uses_cache(provider) else None
        if entry is None:
            return None
        if entry.catalog is None and entry.failure is not None:
            error, failed_at = entry.failure
            if self._now() < failed_at + _FAILURE_MEMORY_S:
                return error.copy()
        try:
            return self._serve_without_waiting(provider, entry, entry.life.decide())
        except NotFound as error:
            return error

    async def load(self, provider: Provider) -> None:
        """Load the cached list of a provider from the store into memory."""
        if self._uses_cache(provider):
            await self._cache.load(provider)

    def peek(self, provider: Provider) -> Catalog | None:
        """A fresh list in memory, from any thread; None if there is none, or if more than returning it must be done."""
        entry = self._cache.peek(provider) if self._uses_cache(provider) else None
        # With a listener there is more to do: events are emitted on the loop.
        if entry is None or entry.catalog is None or self._telemetry.wants(CallStart):
            return None
        decision = entry.life.decide()
        if decision.action == "serve_and_refresh":
            # The decision made this caller responsible for the refresh, which needs the loop.
            entry.life.abandoned()
        return _with_age(entry.catalog, decision) if decision.action == "serve" else None

    async def invalidate(self, name: str | None) -> None:
        """Delete the list of a provider, or all lists, in memory and in every store."""
        await self._cache.invalidate(name, self._stores())

    async def aclose(self) -> None:
        """Cancel the refreshes."""
        await self._refreshes.aclose()

    def _uses_cache(self, provider: Provider) -> bool:
        endpoint = provider.endpoints[0]
        return self._enabled and endpoint.flags.cache and endpoint.cache_ttl != 0

    def _serve_without_waiting(
        self, provider: Provider, entry: CachedList, decision: Decision
    ) -> Catalog | None:
        if decision.action == "not_found" and entry.failure is not None:
            raise entry.failure[0].copy()
        if entry.catalog is None or decision.action not in ("serve", "serve_and_refresh"):
            return None
        if decision.action == "serve_and_refresh":
            task = self._refreshes.start(self._refresh(provider, entry))
            # A callback, not a ``finally`` in the coroutine: a task that is cancelled before its first step
            # never enters the coroutine.
            task.add_done_callback(lambda _: entry.life.abandoned())
        return self._serve(provider, entry.catalog, decision, cause="refreshing")

    def _serve(self, provider: Provider, catalog: Catalog, decision: Decision, *, cause: str) -> Catalog:
        age, emit = decision.age, ListScope(self._engine, provider).emit
        if decision.stale:
            emit(CacheStale, cache="catalog", age=age, cause=cause)
        else:
            emit(CacheHit, cache="catalog", age=age)
        models, dropped = len(catalog), catalog.dropped
        emit(CatalogDiscover, outcome="ok", source="cache", models=models, dropped=dropped)
        return _with_age(catalog, decision)

    async def _fetch_shared(self, provider: Provider, entry: CachedList, deadline: Deadline) -> Catalog:
        try:
            return await self._share(provider, lambda: self._fetch(provider, entry, deadline), deadline)
        except DeadlineExceeded:
            # Other callers with more time may still wait for it; new callers are served the cached list at once.
            entry.life.refresh_failed()
            raise

    async def _share(
        self, provider: Provider, make: Callable[[], Coroutine[Any, Any, Catalog]], deadline: Deadline
    ) -> Catalog:
        """Fetch the list, or wait for the result of a caller that is already fetching it."""
        if not provider.endpoints[0].flags.coalesce:
            return await make()
        try:
            async with asyncio.timeout(deadline.remaining() if deadline.bounded else None):
                return await self._engine.singleflight.share(f"catalog of {provider.name}", make)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed while waiting for the answer.", phase="coalesce"
            ) from None
        except LocalRejection:
            # The shared request ended by the first caller's own limits, such as its deadline; this caller has its own.
            if deadline.expired() or self._engine.closed:
                raise
            return await make()

    async def _fetch(
        self,
        provider: Provider,
        entry: CachedList | None,
        deadline: Deadline,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Catalog:
        """Fetch the list, and record the result in the cache and as an event."""
        started = self._now()
        try:
            catalog = await self._fetch_and_store(provider, entry, deadline, headers)
        except LLMOptError as error:
            if entry is not None:
                await self._record_failure(provider, entry, error)
            self._emit_fetch(provider, started, type(error).__name__)
            raise
        models, dropped = len(catalog), catalog.dropped
        if dropped:
            left_out = f"{dropped} of {dropped + models} entries cannot be read and are left out"
            message = f"the list of models of {provider.name}: {left_out}"
            values = {"provider": provider.name, "models": models, "dropped": dropped}
            REQUEST.write(WARNING, "catalog.unreadable", message, values)
        self._emit_fetch(provider, started, "ok", models, dropped)
        return catalog

    def _emit_fetch(
        self, provider: Provider, started: float, outcome: str, models: int = 0, dropped: int = 0
    ) -> None:
        ListScope(self._engine, provider).emit(
            CatalogDiscover,
            outcome=outcome,
            source="provider",
            models=models,
            dropped=dropped,
            seconds=self._now() - started,
        )

    async def _fetch_and_store(
        self,
        provider: Provider,
        entry: CachedList | None,
        deadline: Deadline,
        headers: Mapping[str, str],
    ) -> Catalog:
        if entry is None:
            fetched = await fetch_model_list(self._engine, provider, deadline=deadline, headers=headers)
            return fetched.catalog or Catalog(provider=provider.name)
        etag = entry.etag if entry.catalog is not None else None
        fetched = await fetch_model_list(self._engine, provider, deadline=deadline, etag=etag)
        if fetched.catalog is None and entry.catalog is None:
            # The answer was "not modified" (304), but the cached list was deleted in the meantime.
            fetched = await fetch_model_list(self._engine, provider, deadline=deadline)
        catalog = await self._cache.store(provider, entry, fetched)
        await self._size_reporter.stored("catalog")
        return catalog

    async def _record_failure(self, provider: Provider, entry: CachedList, error: LLMOptError) -> None:
        sent_or_open = isinstance(error, CircuitOpen) or error.sent != "no"
        if isinstance(error, LocalRejection) and not sent_or_open:
            # Caused on this side, such as by a deadline or a full queue: it says nothing about the provider.
            entry.life.abandoned()
            return
        entry.failure = error.copy(), self._now()
        if isinstance(error, _TEMPORARY_ERRORS):
            entry.life.refresh_failed()
            return
        if isinstance(error, NotFound):
            entry.life.not_found()
        else:
            entry.life.refresh_refused()
        await self._cache.drop(provider, entry)

    async def _refresh(self, provider: Provider, entry: CachedList) -> None:
        # A call of its own in the events, because it may outlast the one that is served.
        scope = CallScope(self._telemetry, "catalog", "", provider.endpoints[0])
        async with self._refresh_slots.current():
            with scope.bound(), CallEvents(scope, self._engine.clock):
                started, etag = self._now(), entry.etag
                try:
                    await self._fetch_shared(provider, entry, self._engine.deadline(_REFRESH_TIMEOUT_S))
                    outcome = "unchanged" if etag is not None and entry.etag == etag else "new"
                except LLMOptError as error:
                    outcome = type(error).__name__
                scope.emit(CacheRefresh, cache="catalog", outcome=outcome, seconds=self._now() - started)


def _with_age(catalog: Catalog, decision: Decision) -> Catalog:
    return evolve(catalog, age=decision.age, stale=decision.stale)


def _not_cached(provider: Provider) -> NotCached:
    return NotCached(
        f"no list of models of {provider.name!r} is cached, and cached='offline' allows no request; "
        "call it once without cached='offline'.",
        provider=provider.name,
    )


CatalogOrError = Catalog | LLMOptError


class BatchListModels:
    """Lists the models of many providers: cached lists first, then the others, ten at a time.

    Args:
        engine: its clock and telemetry.
        model_lists: lists the models of one provider.
        find: gives the provider of a name.
    """

    def __init__(self, engine: Engine, model_lists: ModelLists, find: Callable[[str], Provider]) -> None:
        self._engine: Final = engine
        self._model_lists: Final = model_lists
        self._find: Final = find

    async def run(
        self,
        names: Iterable[str],
        *,
        deadline: Deadline,
        timeout_of: Callable[[Provider], float | None],
        mode: CacheMode = "auto",
    ) -> Mapping[str, CatalogOrError]:
        """For each name its list of models, or its error.

        Args:
            names: of provider entries.
            deadline: for all of them.
            timeout_of: gives the seconds for one provider, counted from its turn; None for unlimited.
            mode: how the cache is used.
        """
        started = self._engine.clock.now()
        ordered = list(dict.fromkeys(names))
        results: dict[str, CatalogOrError] = {}
        pending: dict[str, Provider] = {}
        for name in ordered:
            try:
                pending[name] = self._find(name)
            except LLMOptError as error:
                results[name] = error
        # Cached lists first: they are returned without waiting for a slot behind slow providers.
        if mode == "auto":
            await self._take_cached(pending, results)
        slots = asyncio.Semaphore(_MAX_CONCURRENT_PROVIDERS)

        async def fetch(provider: Provider) -> None:
            async with slots:
                # The provider's own time begins with its turn.
                own = self._engine.deadline(timeout_of(provider))
                sooner = own if own.at < deadline.at else deadline
                try:
                    results[provider.name] = await self._model_lists.get(provider, deadline=sooner, mode=mode)
                except LLMOptError as error:
                    results[provider.name] = error

        if pending:
            await asyncio.gather(*map(fetch, pending.values()))
        self._engine.telemetry.emit(
            CatalogBatch,
            providers=len(results),
            failures=sum(isinstance(each, LLMOptError) for each in results.values()),
            seconds=self._engine.clock.now() - started,
        )
        return {name: results[name] for name in ordered}

    async def _take_cached(self, pending: dict[str, Provider], results: dict[str, CatalogOrError]) -> None:
        """Move the providers that need no request from ``pending`` to ``results``: by memory, then by the store."""
        self._take_from_memory(pending, results)
        if pending:
            await asyncio.gather(*map(self._model_lists.load, pending.values()))
            self._take_from_memory(pending, results)

    def _take_from_memory(self, pending: dict[str, Provider], results: dict[str, CatalogOrError]) -> None:
        # A copy, because entries are removed on the way.
        for name, provider in list(pending.items()):
            result = self._model_lists.get_without_waiting(provider)
            if result is not None:
                results[name] = result
                del pending[name]
