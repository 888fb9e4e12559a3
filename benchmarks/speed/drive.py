"""How a case is driven inside a contender's process. Each function is one block of one round."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from typing import Any, Self

from benchmarks.speed.cases import Case
from benchmarks.speed.texts import passages, texts, vectors

Report = dict[str, Any]


class Block:
    """CPU and wall time of what is done in a ``with``."""

    def __enter__(self) -> Self:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def told(self, requests: int, vectors: int) -> Report:
        """Seconds of CPU (all threads) and of wall time, for so much."""
        return {"cpu": self.cpu, "wall": self.wall, "requests": requests, "vectors": vectors}


class Driver:
    """One contender in one case.

    Args:
        case: the case.
        client: its client, asynchronous or not.
    """

    def __init__(self, case: Case, client: Any) -> None:
        self._case = case
        self._client = client
        self._next = 0

    def _texts(self, count: int) -> list[str]:
        start, words = self._next, self._case.words
        self._next += count
        return passages(start, count, words) if words else texts(start, count)

    async def check(self) -> None:
        """One request, and whether its result is right: who decodes wrongly need not be measured."""
        case, client = self._case, self._client
        if case.kind == "catalogue":
            assert await client.models() == case.items
            return
        if hasattr(client, "flood"):
            return
        if case.kind == "sync":
            await _maybe(client.ask(self._texts(case.items)))
            return
        import numpy as np

        found = client.rows(await client.ask(self._texts(case.items)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, vectors(case.items, case.dimensions), rtol=1e-6)

    async def block(self, count: int) -> Report:
        """Do so much (requests, or texts where the case is about many), and say what it cost."""
        case = self._case
        blocks: dict[str, Callable[[int], Awaitable[Report]]] = {
            "requests": self._flood,
            "sync": self._one_by_one,
            "bulk": self._bulk,
            "catalogue": self._models,
        }
        return await blocks[case.kind](count)

    async def _flood(self, count: int) -> Report:
        case, client = self._case, self._client
        if hasattr(client, "flood"):
            with Block() as block:
                client.flood(count)
            return block.told(count, count * case.items)
        asked = [self._texts(case.items) for _ in range(count)]

        async def work(each: Iterator[list[str]]) -> None:
            for some in each:
                client.rows(await client.ask(some))

        left = iter(asked)
        with Block() as block:
            await asyncio.gather(*(work(left) for _ in range(case.in_flight)))
        return block.told(count, count * case.items)

    async def _one_by_one(self, count: int) -> Report:
        asked = [self._texts(1) for _ in range(count)]
        ask = self._client.ask
        if asyncio.iscoroutinefunction(ask):
            with Block() as block:
                for some in asked:
                    await ask(some)
        else:
            with Block() as block:
                for some in asked:
                    ask(some)
        return block.told(count, count)

    async def _bulk(self, count: int) -> Report:
        case = self._case
        if hasattr(self._client, "flood"):
            with Block() as block:
                self._client.flood(count // case.items)
            return block.told(count // case.items, count)
        asked = self._texts(count)
        with Block() as block:
            found = await self._client.bulk(asked)
        assert found.shape == (count, case.dimensions)
        return block.told(count // case.items, count)

    async def _models(self, count: int) -> Report:
        with Block() as block:
            for _ in range(count):
                await self._client.models()
        return block.told(count, count * self._case.items)

    async def stored(self, path: str) -> Report:
        """All texts into a file."""
        asked = self._texts(self._case.total)
        with Block() as block:
            rows = await self._client.stored(asked, path)
        assert rows == self._case.total
        return block.told(rows // self._case.items, rows)

    async def hold(self) -> float:
        """The longest time, in seconds, that the event loop was not free during a request: the median of five."""
        return median([await self._hold_once() for _ in range(5)])

    async def _hold_once(self) -> float:
        worst, over = 0.0, False

        async def watch() -> None:
            nonlocal worst
            while not over:
                before = time.perf_counter()
                await asyncio.sleep(0)
                worst = max(worst, time.perf_counter() - before)

        watching = asyncio.create_task(watch())
        self._client.rows(await self._client.ask(self._texts(self._case.items)))
        over = True
        await watching
        return worst


async def _maybe(found: Any) -> None:
    if hasattr(found, "__await__"):
        await found
