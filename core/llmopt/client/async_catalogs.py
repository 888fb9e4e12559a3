"""What the asynchronous client does with lists of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llmopt.errors import ConfigError, LLMOptError

if TYPE_CHECKING:
    from llmopt.client.parts import Parts
    from llmopt.operations.catalog import CacheMode
    from llmopt.providers.provider import Provider
    from llmopt.values.catalog import Catalog

_EACH_S: Final = 8.0
"""Seconds for each of many lists of models: one that hangs must not hold up all others."""


class AsyncCatalogs:
    """The methods of `llmopt.AsyncClient` for lists of models."""

    @property
    def _parts(self) -> Parts:
        raise NotImplementedError

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
        parts = self._parts
        found = parts.registry.get(provider)
        bound = parts.catalog_deadline(found, deadline)
        return await parts.catalogs.list(found, deadline=bound, mode=_cached(cached))

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
        from llmopt.policies.deadline import valid_seconds

        parts = self._parts
        names = parts.registry.names() if providers is None else _names(providers)
        if timeout is not None:
            valid_seconds(timeout, "timeout")

        def each(provider: Provider) -> float | None:
            return timeout if timeout is not None else provider.endpoints[0].timeouts.total or _EACH_S

        bound = parts.engine.deadline(deadline)
        return await parts.batch.run(names, deadline=bound, each=each, mode=_cached(cached))

    async def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Have the lists of models at hand, at start-up: `batch_list_models`, for its effect."""
        return await self.batch_list_models(providers, deadline=deadline)

    async def invalidate(self, provider: str | None = None) -> None:
        """Let the kept list of models of a provider go, or all of them, here and in the store."""
        parts = self._parts
        for name in parts.registry.names() if provider is None else (provider,):
            # So that its store is known, wherever it is configured to be.
            with suppress(LLMOptError):
                parts.caches.catalogs(parts.registry.get(name))
        await parts.catalogs.invalidate(provider)

    def _models_at_hand(self, provider: str) -> Catalog | None:
        """A list that can be given at once, from any thread; None where more must be done."""
        found = self._parts.registry.known(provider)
        return None if found is None else self._parts.catalogs.peek(found)


def _cached(mode: CacheMode) -> CacheMode:
    if mode not in ("auto", "refresh", "offline"):
        raise _wrong("cached", "'auto', 'refresh' or 'offline'")
    return mode


def _names(providers: Iterable[str]) -> Iterable[str]:
    if isinstance(providers, str):
        raise _wrong("providers", "a list of names, such as ['local']")
    return providers


def _wrong(name: str, choices: str) -> ConfigError:
    return ConfigError(f"{name} must be {choices}.")
