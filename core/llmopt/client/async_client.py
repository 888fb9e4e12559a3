"""The asynchronous client: one engine, its providers, its connections."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.arguments import WhenOpen, check_arguments, waits_when_open, with_flags
from llmopt.client.async_chat import AsyncChat
from llmopt.client.caching import CacheChoice, Caches, plan_of
from llmopt.config.load import load_config
from llmopt.config.tree import Config
from llmopt.engine.engine import Engine
from llmopt.errors import LLMOptError
from llmopt.operations.catalog import CacheMode, Catalogs
from llmopt.operations.catalog_batch import CatalogBatching
from llmopt.operations.catalog_shelf import Shelf
from llmopt.operations.chat import ChatJob
from llmopt.operations.chat_inputs import ChatParameters, Messages, chat_call
from llmopt.operations.embed import ErrorMode, embed
from llmopt.operations.embed_job import EmbedJob
from llmopt.operations.embed_stream import EmbedStream
from llmopt.operations.inputs import embed_call
from llmopt.operations.learned import learned_file
from llmopt.operations.memory import ModelMemory
from llmopt.policies.clock import Clock
from llmopt.policies.deadline import Deadline, valid_seconds
from llmopt.providers.provider import Provider
from llmopt.providers.registry import Registry
from llmopt.values.catalog import Catalog
from llmopt.values.embeddings import Embeddings
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx

_CATALOG_S: Final = 30.0
"""A list of models that takes longer is no use to anybody who waits for it."""
_EACH_S: Final = 8.0
"""And of many at once: one that hangs must not hold up all others."""


class AsyncClient(AsyncChat):
    """Asks any number of providers, with one set of connections.

    Use it in ``async with``, or call `aclose`. Making one opens nothing and imports little.

    Args:
        config: a mapping as in ``llmopt.toml``, the path of such a file, or a `Config`; by default
            ``llmopt.toml`` here or in the user's configuration folder. A mapping is laid over the
            file and the environment.
        transport: an httpx transport to use for every provider, instead of llmopt's own pool.
        cache: what is kept, and where. By default lists of models are, on disk in the user's cache
            folder. True keeps the vectors of texts there as well; a path does the same in that
            folder, "memory" in this process alone, an object with the methods of
            `llmopt.CacheStore` wherever it likes; False keeps nothing.
        plugins: wrapper plugins, called around every provider's hooks.
        on_event: a function that gets every event (`llmopt.values.events`), on the event loop.
        flags: switches over those of the configuration, such as ``{"retry": False}``.
        clock: the time, for tests: `llmopt.testing.clock.SimulatedClock`.

    Raises:
        ConfigError: the configuration cannot be used; the message names the key.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | os.PathLike[str] | Config | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        cache: CacheChoice = None,
        plugins: Sequence[object] = (),
        on_event: OnEvent | None = None,
        flags: Mapping[str, bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_arguments(transport=transport, plugins=plugins, on_event=on_event, flags=flags)
        loaded = load_config(config, environ=os.environ)
        if flags is not None:
            loaded = with_flags(loaded, flags)
        self._registry: Final = Registry(loaded, plugins, os.environ)
        self._engine: Final = Engine(transport=transport, on_event=on_event, clock=clock)
        self._learned: Final = learned_file(loaded.cache_dir)
        plan = plan_of(cache, loaded, own_transport=transport is not None)
        self._caches: Final = Caches(plan, self._engine, self._registry)
        shelf = Shelf(self._caches.keys, self._caches.catalogs, self._engine.clock)
        self._catalogs: Final = Catalogs(self._engine, shelf, self._caches.all, on=plan.catalogs)
        self._batch: Final = CatalogBatching(self._engine, self._catalogs, self._registry.get)
        self._memories: Final[dict[tuple[str, str], ModelMemory]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client holds connections and cannot be pickled; make one in the other process")

    async def aclose(self) -> None:
        """Close all connections, and write what the cache has still to write. Calls made later raise `ClientClosed`."""
        try:
            await self._catalogs.aclose()
        finally:
            try:
                await self._engine.aclose()
            finally:
                await self._caches.aclose()

    async def embed(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        deadline: float | None = None,
        errors: ErrorMode = "raise",
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Embed texts: row i of the result is text i.

        Identical texts are sent once. The texts are cut into as many requests as the provider's
        limits on items, tokens and bytes demand, and several are under way at once.

        Args:
            model: "provider/model".
            texts: any iterable of non-empty str; an empty one gives shape (0, 0) without a request.
            dimensions: length of the vectors, for models that can shorten them.
            input_type: what the texts are for, such as "query" or "document".
            deadline: seconds for the whole call, None for no bound.
            errors: "raise" raises when any text failed; "return" gives NaN rows and their errors.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the request's body, passed on as given.

        Returns:
            float32 vectors of shape (number of texts, dimensions), the usage, and the errors.

        Raises:
            InvalidInput: a text cannot be sent; ``index`` says which. Nothing was sent.
            PartialFailure: some texts failed; ``result`` has all the others.
            LLMOptError: every text failed for this one reason.
        """
        job = self._job(model, dimensions, input_type, deadline, extra, when_open)
        return await embed(job, texts, errors=_mode(errors))

    def embed_iter(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        deadline: float | None = None,
        errors: ErrorMode = "raise",
        when_open: WhenOpen = "wait",
        extra: Mapping[str, Any] | None = None,
    ) -> EmbedStream:
        """Embed an iterable of any length, in order, in bounded memory.

        Args:
            model: "provider/model".
            texts: any iterable of non-empty str, one that never ends among them.
            dimensions: as for `embed`.
            input_type: as for `embed`.
            deadline: seconds for the whole iteration, None for no bound.
            errors: "raise" ends with the first part that has a failed text; "return" goes on.
            when_open: as for `embed`; waiting is the default here.
            extra: as for `embed`.

        Returns:
            An asynchronous iterator of `EmbeddedPart`, to be used in ``async with`` where the loop
            may be left early. Before an error is raised, all parts before it come.
        """
        job = self._job(model, dimensions, input_type, deadline, extra, when_open)
        return EmbedStream(job, texts, errors=_mode(errors))

    async def list_models(
        self, provider: str, *, deadline: float | None = None, cached: CacheMode = "auto"
    ) -> Catalog:
        """All models of one provider, in its order.

        The list is kept for an hour. After that it is still given for a day, marked as ``stale``, while
        a new one is asked for beside the call; and for a week where no new one can be had.

        Args:
            provider: name of the entry.
            deadline: seconds for the whole call; by default what is configured, else 30.
            cached: "auto" as above; "refresh" asks the provider whatever is kept; "offline" asks nobody
                and gives what is kept, however old.

        Raises:
            NotCached: nothing is kept, and ``cached`` is "offline".
            LLMOptError: the provider could not be asked, and nothing is kept.
        """
        found = self._registry.get(provider)
        bound = self._catalog_deadline(found, deadline)
        return await self._catalogs.list(found, deadline=bound, mode=_cached(cached))

    async def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """The models of many providers at once, at most ten asked at the same time.

        A provider that failed less than five seconds ago, and of which nothing is kept, is not asked again.

        Args:
            providers: names of entries; by default all that are configured or have a key.
            deadline: seconds for the whole call.
            timeout: seconds for each provider, from its turn on; by default what is configured, else 8.
            cached: as for `list_models`.

        Returns:
            For each provider its catalogue, or the error that is its alone.
        """
        names = self._registry.names() if providers is None else _names(providers)
        if timeout is not None:
            valid_seconds(timeout, "timeout")

        def each(provider: Provider) -> float | None:
            return timeout if timeout is not None else provider.endpoints[0].timeouts.total or _EACH_S

        bound = self._engine.deadline(deadline)
        return await self._batch.run(names, deadline=bound, each=each, mode=_cached(cached))

    async def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Have the lists of models at hand, at start-up: `batch_list_models`, for its effect."""
        return await self.batch_list_models(providers, deadline=deadline)

    async def invalidate(self, provider: str | None = None) -> None:
        """Let the kept list of models of a provider go, or all of them, here and in the store."""
        for name in self._registry.names() if provider is None else (provider,):
            # So that its store is known, wherever it is configured to be.
            with suppress(LLMOptError):
                self._caches.catalogs(self._registry.get(name))
        await self._catalogs.invalidate(provider)

    def _models_at_hand(self, provider: str) -> Catalog | None:
        """A list that can be given at once, from any thread; None where more must be done."""
        found = self._registry.known(provider)
        return None if found is None else self._catalogs.peek(found)

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values: for each provider in use, for each of its endpoints."""
        return self._engine.stats()

    def _job(
        self,
        model: str,
        dimensions: int | None,
        input_type: str | None,
        deadline: float | None,
        extra: Mapping[str, Any] | None,
        when_open: WhenOpen,
    ) -> EmbedJob:
        waits = waits_when_open(when_open)
        provider, name = self._registry.split(model)
        call = embed_call(name, dimensions=dimensions, input_type=input_type, extra=extra)
        memory = self._memory(provider, name)
        keeps = self._caches.plan.vectors
        return EmbedJob(
            self._engine,
            provider,
            call,
            memory=memory,
            deadline=self._deadline(provider, deadline),
            wait_when_open=waits,
            cache=(lambda: self._caches.texts(provider, call, memory)) if keeps else None,
        )

    def _chat_job(
        self,
        model: str,
        messages: Messages,
        parameters: ChatParameters,
        deadline: float | None,
        when_open: WhenOpen,
        extra: Mapping[str, Any] | None,
    ) -> ChatJob:
        waits = waits_when_open(when_open)
        provider, name = self._registry.split(model)
        return ChatJob(
            self._engine,
            provider,
            chat_call(name, messages, parameters, extra),
            estimator=self._memory(provider, name).estimator,
            deadline=self._deadline(provider, deadline),
            wait_when_open=waits,
        )

    def _memory(self, provider: Provider, model: str) -> ModelMemory:
        key = (provider.name, model)
        if key not in self._memories:
            origins = " ".join(endpoint.origin for endpoint in provider.endpoints)
            self._memories[key] = ModelMemory(f"{provider.name} {origins} {model}", self._learned)
        return self._memories[key]

    def _catalog_deadline(self, provider: Provider, seconds: float | None) -> Deadline:
        if seconds is None:
            seconds = provider.endpoints[0].timeouts.total or _CATALOG_S
        return self._engine.deadline(seconds)

    def _deadline(self, provider: Provider, seconds: float | None) -> Deadline:
        total = provider.endpoints[0].timeouts.total
        return self._engine.deadline(total if seconds is None else seconds)


def _mode(errors: ErrorMode) -> ErrorMode:
    if errors not in ("raise", "return"):
        raise _wrong("errors", "'raise' or 'return'")
    return errors


def _cached(mode: CacheMode) -> CacheMode:
    if mode not in ("auto", "refresh", "offline"):
        raise _wrong("cached", "'auto', 'refresh' or 'offline'")
    return mode


def _wrong(name: str, choices: str) -> LLMOptError:
    from llmopt.errors import ConfigError

    return ConfigError(f"{name} must be {choices}.")


def _names(providers: Iterable[str]) -> Iterable[str]:
    if isinstance(providers, str):
        raise _wrong("providers", "a list of names, such as ['local']")
    return providers
