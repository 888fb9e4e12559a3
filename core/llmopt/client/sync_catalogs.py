"""What the synchronous client does with lists of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmopt.client.async_catalogs import AsyncCatalogs
from llmopt.client.loop_thread import LoopThread
from llmopt.errors import LLMOptError
from llmopt.operations.catalog import CacheMode
from llmopt.values.catalog import Catalog


class SyncCatalogs:
    """The methods of `llmopt.Client` for lists of models."""

    _client: AsyncCatalogs

    def _running(self) -> LoopThread:
        raise NotImplementedError

    def list_models(
        self, provider: str, *, deadline: float | None = None, cached: CacheMode = "auto"
    ) -> Catalog:
        """All models of one provider; see `llmopt.AsyncClient.list_models`."""
        thread = self._running()
        if cached == "auto":
            # What is at hand need not cross to the other thread and back, which takes ten times as long.
            found = self._client._models_at_hand(provider)  # noqa: SLF001 - the mirror's own other half
            if found is not None:
                return found
        return thread.run(self._client.list_models(provider, deadline=deadline, cached=cached))

    def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """The models of many providers; see `llmopt.AsyncClient.batch_list_models`."""
        thread = self._running()
        return thread.run(
            self._client.batch_list_models(providers, deadline=deadline, timeout=timeout, cached=cached)
        )

    def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Have the lists of models at hand; see `llmopt.AsyncClient.warm`."""
        thread = self._running()
        return thread.run(self._client.warm(providers, deadline=deadline))

    def invalidate(self, provider: str | None = None) -> None:
        """Let kept lists of models go; see `llmopt.AsyncClient.invalidate`."""
        thread = self._running()
        thread.run(self._client.invalidate(provider))
