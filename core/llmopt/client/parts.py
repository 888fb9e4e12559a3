"""What a client works with: made, and imported, when it is first used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmopt.client.arguments import WhenOpen, waits_when_open
from llmopt.client.cache_plan import CachePlan
from llmopt.client.caching import Caches
from llmopt.config.tree import Config
from llmopt.engine.engine import Engine
from llmopt.operations.catalog import Catalogs
from llmopt.operations.catalog_batch import CatalogBatching
from llmopt.operations.catalog_shelf import Shelf
from llmopt.operations.chat import ChatJob
from llmopt.operations.chat_inputs import ChatParameters, Messages, chat_call
from llmopt.operations.embed_job import EmbedJob
from llmopt.operations.inputs import embed_call
from llmopt.operations.learned import learned_file
from llmopt.operations.memory import ModelMemory
from llmopt.policies.clock import Clock
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.providers.registry import Registry
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx

_CATALOG_S: Final = 30.0
"""A list of models that takes longer is no use to anybody who waits for it."""


class Parts:
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
        memories: what was learned, by provider and model.
    """

    def __init__(
        self,
        config: Config,
        plan: CachePlan,
        *,
        transport: httpx.AsyncBaseTransport | None,
        plugins: Sequence[object],
        on_event: OnEvent | None,
        clock: Clock | None,
    ) -> None:
        self.registry: Final = Registry(config, plugins, os.environ)
        self.engine: Final = Engine(transport=transport, on_event=on_event, clock=clock)
        self._learned: Final = learned_file(config.cache_dir)
        self.caches: Final = Caches(plan, self.engine, self.registry)
        shelf = Shelf(self.caches.keys, self.caches.catalogs, self.engine.clock)
        self.catalogs: Final = Catalogs(
            self.engine, shelf, self.caches.all, self.caches.watch, on=plan.catalogs
        )
        self.batch: Final = CatalogBatching(self.engine, self.catalogs, self.registry.get)
        self.memories: Final[dict[tuple[str, str], ModelMemory]] = {}

    async def aclose(self) -> None:
        """As the client's."""
        try:
            await self.catalogs.aclose()
        finally:
            try:
                await self.engine.aclose()
            finally:
                await self.caches.aclose()

    def embed_job(
        self,
        model: str,
        dimensions: int | None,
        input_type: str | None,
        deadline: float | None,
        extra: Mapping[str, Any] | None,
        when_open: WhenOpen,
    ) -> EmbedJob:
        """One call for vectors."""
        waits = waits_when_open(when_open)
        provider, name = self.registry.split(model)
        call = embed_call(name, dimensions=dimensions, input_type=input_type, extra=extra)
        memory = self._memory(provider, name)
        keeps = self.caches.plan.vectors
        return EmbedJob(
            self.engine,
            provider,
            call,
            memory=memory,
            deadline=self._deadline(provider, deadline),
            wait_when_open=waits,
            cache=(lambda: self.caches.texts(provider, call, memory)) if keeps else None,
        )

    def chat_job(
        self,
        model: str,
        messages: Messages,
        parameters: ChatParameters,
        deadline: float | None,
        when_open: WhenOpen,
        extra: Mapping[str, Any] | None,
    ) -> ChatJob:
        """One call for an answer in a conversation."""
        waits = waits_when_open(when_open)
        provider, name = self.registry.split(model)
        return ChatJob(
            self.engine,
            provider,
            chat_call(name, messages, parameters, extra),
            estimator=self._memory(provider, name).estimator,
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

    def _memory(self, provider: Provider, model: str) -> ModelMemory:
        key = (provider.name, model)
        if key not in self.memories:
            origins = " ".join(endpoint.origin for endpoint in provider.endpoints)
            self.memories[key] = ModelMemory(f"{provider.name} {origins} {model}", self._learned)
        return self.memories[key]
