"""Lists of models: given from what is kept, asked for when they must be, one request for all who wait.

What to do for a caller is decided in `llmopt.cache.freshness`; here it is done. Lists that must be
refreshed beside their callers are asked for by tasks of the client's own, a few at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Literal

from llmopt.cache.freshness import Decision
from llmopt.cache.store import SafeStore
from llmopt.engine.engine import Engine
from llmopt.errors import (
    CircuitOpen,
    ClientClosed,
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
from llmopt.operations.cache_keys import StoreSizeReporter
from llmopt.operations.models_cache import CachedList, ModelListCache, fetch_model_list
from llmopt.policies.clock import Deadline
from llmopt.policies.tasks import PerLoop, TaskSet
from llmopt.providers.registry import Provider
from llmopt.values.catalog import Catalog
from llmopt.values.events import (
    CacheHit,
    CacheMiss,
    CacheRefresh,
    CacheStale,
    CatalogBatch,
    CatalogDiscover,
)

CacheMode = Literal["auto", "refresh", "offline"]
"""What a caller makes of the cache: use it, ask anew whatever it has, or ask nobody."""
_log: Final = logging.getLogger("llmopt")
_MAX_CONCURRENT_PAGES: Final = 4
_REFRESH_S: Final = 30.0
_RECENT_S: Final = 5.0
_PASSING: Final = (
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
"""With these an older list is better than none. A refusal (401, 403, 404) says that it is not ours any more."""


class ModelLists:
    """The lists of models of all providers of one client.

    Args:
        engine: sends the requests.
        shelf: where lists are kept.
        stores: all stores in use.
        size_reporter: reports their size after something was stored.
        on: whether lists are kept at all.
    """

    def __init__(
        self,
        engine: Engine,
        shelf: ModelListCache,
        stores: Callable[[], Iterable[SafeStore]],
        size_reporter: StoreSizeReporter,
        *,
        on: bool = True,
    ) -> None:
        self._size_reporter: Final = size_reporter
        self._on: Final = on
        self._engine: Final = engine
        self._shelf: Final = shelf
        self._stores: Final = stores
        self._refreshes: Final = TaskSet()
        self._refresh_slots: Final = PerLoop(lambda: asyncio.Semaphore(_MAX_CONCURRENT_PAGES))

    async def list(self, provider: Provider, *, deadline: Deadline, mode: CacheMode = "auto") -> Catalog:
        """All models of one provider.

        Raises:
            NotCached: ``mode`` is "offline" and nothing is kept.
            LLMOptError: the provider could not be asked.
        """
        self._check_open(provider)
        if not self._cached(provider):
            if mode == "offline":
                raise _not_cached(provider)
            return await self._share(provider, lambda: self._ask(provider, None, deadline), deadline)
        kept = await self._shelf.find(provider)
        if mode == "offline":
            return self._kept(provider, kept)
        if mode == "refresh":
            return await self._anew(provider, kept, deadline)
        return await self._usual(provider, kept, deadline)

    async def _usual(self, provider: Provider, kept: CachedList, deadline: Deadline) -> Catalog:
        decision = kept.life.decide()
        given = self._at_once(provider, kept, decision)
        if given is not None:
            return given
        self._engine.telemetry.emit(CacheMiss, provider=provider.name, cache="catalog")
        try:
            return await self._anew(provider, kept, deadline)
        except LLMOptError as error:
            # Looked at again: meanwhile it may have been refused, or have come by another way.
            if decision.action != "fetch_or_serve" or not isinstance(error, _PASSING) or kept.catalog is None:
                raise
            return self._give(kept, decision, cause=type(error).__name__)

    def settled(self, provider: Provider) -> Catalog | LLMOptError | None:
        """What can be said without waiting: a list, why there is none, or None where somebody must be asked.

        A provider that nothing is kept of and that failed a moment ago counts as settled too.
        """
        self._check_open(provider)
        kept = self._shelf.look(provider) if self._cached(provider) else None
        if kept is None:
            return None
        if kept.catalog is None and kept.failure is not None:
            error, at = kept.failure
            if self._engine.clock.now() < at + _RECENT_S:
                return error.copy()
        try:
            return self._at_once(provider, kept, kept.life.decide())
        except NotFound as error:
            return error

    async def find(self, provider: Provider) -> None:
        """Have what is kept of a provider at hand."""
        if self._cached(provider):
            await self._shelf.find(provider)

    def peek(self, provider: Provider) -> Catalog | None:
        """A list that is fresh and needs no refreshing, from any thread; None where there is more to it."""
        kept = self._shelf.look(provider) if self._cached(provider) else None
        if kept is None or kept.catalog is None or self._engine.telemetry.enabled:
            return None
        decision = kept.life.decide()
        if decision.action == "serve_and_refresh":
            kept.life.abandoned()
        return _aged(kept.catalog, decision) if decision.action == "serve" else None

    async def invalidate(self, name: str | None) -> None:
        """Let a provider's list go, or all of them, here and in every store."""
        await self._shelf.invalidate(name, self._stores())

    async def aclose(self) -> None:
        """Stop asking beside the callers."""
        await self._refreshes.aclose()

    def _cached(self, provider: Provider) -> bool:
        endpoint = provider.endpoints[0]
        return self._on and endpoint.flags.cache and endpoint.cache_ttl != 0

    def _check_open(self, provider: Provider) -> None:
        if self._engine.closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)

    def _kept(self, provider: Provider, kept: CachedList) -> Catalog:
        if kept.catalog is None:
            raise _not_cached(provider)
        return self._give(kept, kept.life.peek(), cause="offline")

    def _at_once(self, provider: Provider, kept: CachedList, decision: Decision) -> Catalog | None:
        if decision.action == "not_found" and kept.failure is not None:
            raise kept.failure[0].copy()
        if kept.catalog is None or decision.action not in ("serve", "serve_and_refresh"):
            return None
        if decision.action == "serve_and_refresh":
            task = self._refreshes.start(self._refreshed(provider, kept))
            # Also called where the task is cancelled before it begins.
            task.add_done_callback(lambda _: kept.life.abandoned())
        return self._give(kept, decision, cause="refreshing")

    def _give(self, kept: CachedList, decision: Decision, *, cause: str) -> Catalog:
        assert kept.catalog is not None  # noqa: S101 - whoever calls has looked
        telemetry = self._engine.telemetry
        if telemetry.enabled:
            name, age, models = kept.provider, decision.age, len(kept.catalog)
            if decision.stale:
                telemetry.emit(CacheStale, provider=name, cache="catalog", age=age, cause=cause)
            else:
                telemetry.emit(CacheHit, provider=name, cache="catalog", age=age)
            telemetry.emit(CatalogDiscover, provider=name, outcome="ok", source="cache", models=models)
        return _aged(kept.catalog, decision)

    async def _anew(self, provider: Provider, kept: CachedList, deadline: Deadline) -> Catalog:
        try:
            return await self._share(provider, lambda: self._ask(provider, kept, deadline), deadline)
        except DeadlineExceeded:
            # Another caller may have more time; but what is kept is there for all, at once.
            kept.life.refresh_failed()
            raise

    async def _share(
        self, provider: Provider, make: Callable[[], Coroutine[Any, Any, Catalog]], deadline: Deadline
    ) -> Catalog:
        """Ask, or wait for the answer that another caller is waiting for."""
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
            # The one who asked first was turned away, or in more of a hurry.
            if deadline.expired() or self._engine.closed:
                raise
            return await make()

    async def _ask(self, provider: Provider, kept: CachedList | None, deadline: Deadline) -> Catalog:
        """Ask the provider, and take note of what came of it."""
        started = self._engine.clock.now()

        def record(outcome: str, models: int) -> None:
            seconds = self._engine.clock.now() - started
            self._engine.telemetry.emit(
                CatalogDiscover,
                provider=provider.name,
                outcome=outcome,
                source="provider",
                models=models,
                seconds=seconds,
            )

        try:
            found = await self._asked(provider, kept, deadline)
        except LLMOptError as error:
            if kept is not None:
                await self._note(provider, kept, error)
            record(type(error).__name__, 0)
            raise
        record("ok", len(found))
        return found

    async def _asked(self, provider: Provider, kept: CachedList | None, deadline: Deadline) -> Catalog:
        if kept is None:
            listing = await fetch_model_list(self._engine, provider, deadline=deadline)
            return Catalog(provider=provider.name, models=listing.models or (), dropped=listing.dropped)
        etag = kept.etag if kept.catalog is not None else None
        listing = await fetch_model_list(self._engine, provider, deadline=deadline, etag=etag)
        if listing.models is None and kept.catalog is None:
            # It was let go while the provider said that it is still the same.
            listing = await fetch_model_list(self._engine, provider, deadline=deadline)
        found = await self._shelf.keep(provider, kept, listing)
        await self._size_reporter.stored("catalog")
        return found

    async def _note(self, provider: Provider, kept: CachedList, error: LLMOptError) -> None:
        if isinstance(error, LocalRejection) and not isinstance(error, CircuitOpen):
            # It says something of this side, and nothing of the provider.
            kept.life.abandoned()
            return
        kept.failure = error.copy(), self._engine.clock.now()
        if isinstance(error, _PASSING):
            kept.life.refresh_failed()
            return
        if isinstance(error, NotFound):
            kept.life.not_found()
        else:
            kept.life.refresh_refused()
        await self._shelf.drop(provider, kept)

    async def _refreshed(self, provider: Provider, kept: CachedList) -> None:
        async with self._refresh_slots.current():
            started = self._engine.clock.now()
            before = kept.etag
            try:
                await self._anew(provider, kept, self._engine.deadline(_REFRESH_S))
                outcome = "unchanged" if before is not None and kept.etag == before else "new"
            except LLMOptError as error:
                outcome = type(error).__name__
                _log.debug("the models of %s could not be refreshed: %s", provider.name, outcome)
            self._engine.telemetry.emit(
                CacheRefresh,
                provider=provider.name,
                cache="catalog",
                outcome=outcome,
                seconds=self._engine.clock.now() - started,
            )


def _aged(catalog: Catalog, decision: Decision) -> Catalog:
    return Catalog(
        provider=catalog.provider,
        models=catalog.models,
        age=decision.age,
        stale=decision.stale,
        dropped=catalog.dropped,
    )


def _not_cached(provider: Provider) -> NotCached:
    return NotCached(
        f"nothing is kept of the models of {provider.name!r}, and no request was allowed; ask once without that.",
        provider=provider.name,
    )


# The models of many providers at once: what is kept is given at once, the rest asked for, ten at a time.

_MAX_CONCURRENT_PROVIDERS: Final = 10
Found = Catalog | LLMOptError


class BatchListModels:
    """Asks many providers.

    Args:
        engine: its clock and its telemetry.
        catalogs: asks one.
        find: the provider of a name.
    """

    def __init__(self, engine: Engine, catalogs: ModelLists, find: Callable[[str], Provider]) -> None:
        self._engine: Final = engine
        self._catalogs: Final = catalogs
        self._find: Final = find

    async def run(
        self,
        names: Iterable[str],
        *,
        deadline: Deadline,
        each: Callable[[Provider], float | None],
        mode: CacheMode = "auto",
    ) -> Mapping[str, Found]:
        """For each name its list, or the error that is that provider's alone.

        Args:
            names: of entries.
            deadline: for all of them.
            each: seconds for one, from its turn on; None for no bound.
            mode: what to make of the cache.
        """
        started = self._engine.clock.now()
        asked = list(dict.fromkeys(names))
        found: dict[str, Found] = {}
        left: dict[str, Provider] = {}
        for name in asked:
            try:
                left[name] = self._find(name)
            except LLMOptError as error:
                found[name] = error
        if mode == "auto":
            await self._settle(left, found)
        room = asyncio.Semaphore(_MAX_CONCURRENT_PROVIDERS)

        async def one(provider: Provider) -> None:
            async with room:
                found[provider.name] = await self._one(provider, deadline, each(provider), mode)

        if left:
            await asyncio.gather(*map(one, left.values()))
        self._engine.telemetry.emit(
            CatalogBatch,
            provider="",
            providers=len(found),
            failures=sum(isinstance(each, LLMOptError) for each in found.values()),
            seconds=self._engine.clock.now() - started,
        )
        return {name: found[name] for name in asked}

    async def _settle(self, left: dict[str, Provider], found: dict[str, Found]) -> None:
        """Take out those for whom nobody need be asked, first by memory, then by the store."""
        self._take(left, found)
        if left:
            await asyncio.gather(*map(self._catalogs.find, left.values()))
            self._take(left, found)

    def _take(self, left: dict[str, Provider], found: dict[str, Found]) -> None:
        for name, provider in list(left.items()):
            settled = self._catalogs.settled(provider)
            if settled is not None:
                found[name] = settled
                del left[name]

    async def _one(
        self, provider: Provider, deadline: Deadline, seconds: float | None, mode: CacheMode
    ) -> Found:
        own = self._engine.deadline(seconds)
        sooner = own if own.at < deadline.at else deadline
        try:
            return await self._catalogs.list(provider, deadline=sooner, mode=mode)
        except LLMOptError as error:
            return error
