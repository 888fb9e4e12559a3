"""The models of many providers at once: what is kept is given at once, the rest asked for, ten at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from llmopt.engine.engine import Engine
from llmopt.errors import LLMOptError
from llmopt.operations.catalog import CacheMode, Catalogs
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.values.cache_events import CatalogBatch
from llmopt.values.catalog import Catalog

_AT_ONCE: Final = 10

Found = Catalog | LLMOptError


class CatalogBatching:
    """Asks many providers.

    Args:
        engine: its clock and its telemetry.
        catalogs: asks one.
        find: the provider of a name.
    """

    def __init__(self, engine: Engine, catalogs: Catalogs, find: Callable[[str], Provider]) -> None:
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
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(provider: Provider) -> None:
            async with room:
                found[provider.name] = await self._one(provider, deadline, each(provider), mode)

        if left:
            await asyncio.gather(*map(one, left.values()))
        self._tell(found, started)
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

    def _tell(self, found: Mapping[str, Found], started: float) -> None:
        if self._engine.telemetry.on:
            failures = sum(isinstance(each, LLMOptError) for each in found.values())
            seconds = self._engine.clock.now() - started
            self._engine.telemetry.emit(
                CatalogBatch(provider="", providers=len(found), failures=failures, seconds=seconds)
            )
