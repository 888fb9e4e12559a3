"""What happens at the cache of lists of models, told to whoever listens."""

from __future__ import annotations

from typing import Final

from llmopt.engine.engine import Engine
from llmopt.errors import LLMOptError
from llmopt.operations.catalog_shelf import Kept
from llmopt.policies.freshness import Decision
from llmopt.providers.provider import Provider
from llmopt.values.cache_events import (
    CacheHit,
    CacheMiss,
    CacheRefresh,
    CacheStale,
    CatalogDiscover,
)
from llmopt.values.catalog import Catalog


class CatalogEvents:
    """Makes events, where somebody listens.

    Args:
        engine: its clock and its telemetry.
    """

    def __init__(self, engine: Engine) -> None:
        self._telemetry: Final = engine.telemetry
        self._now: Final = engine.clock.now

    def gave(self, kept: Kept, decision: Decision, cause: str) -> None:
        """A kept list was given."""
        if not self._telemetry.on:
            return
        name, age = kept.provider, decision.age
        if decision.stale:
            self._telemetry.emit(CacheStale(provider=name, cache="catalog", age=age, cause=cause))
        else:
            self._telemetry.emit(CacheHit(provider=name, cache="catalog", age=age))
        self._telemetry.emit(
            CatalogDiscover(provider=name, outcome="ok", source="cache", models=len(kept.catalog or ()))
        )

    def missed(self, provider: Provider) -> None:
        """Nothing could be given without asking."""
        if self._telemetry.on:
            self._telemetry.emit(CacheMiss(provider=provider.name, cache="catalog"))

    def discovered(
        self,
        provider: Provider,
        started: float,
        *,
        found: Catalog | None = None,
        error: LLMOptError | None = None,
    ) -> None:
        """The provider was asked, and answered, or did not."""
        if self._telemetry.on:
            self._telemetry.emit(
                CatalogDiscover(
                    provider=provider.name,
                    outcome="ok" if error is None else type(error).__name__,
                    source="provider",
                    models=0 if found is None else len(found),
                    seconds=self._now() - started,
                )
            )

    def refreshed(self, provider: Provider, started: float, outcome: str) -> None:
        """A list was asked for beside its callers."""
        if self._telemetry.on:
            seconds = self._now() - started
            self._telemetry.emit(
                CacheRefresh(provider=provider.name, cache="catalog", outcome=outcome, seconds=seconds)
            )
