"""The child process of the speed benchmark: one client in one case, measured block by block.

`benchmarks.worker` imports this file. Each block is a number of requests, texts, lists, look-ups or streams; CPU time is
that of all threads of the process.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import selectors
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.clients import CONTENDERS, STREAM_CONTENDERS, Contender, Setting, contender_named
from benchmarks.cores import allow_many_sockets, pin
from benchmarks.speed_cases import Case, case_named, passages, texts, vectors

_CLOCK_STEP_S: Final = 1e-5
"""A request of llmopt reads the clock some ten times and takes about 0.1 ms."""

Report = dict[str, Any]
Write = Callable[[Report], object]


class CountingSelector(selectors.DefaultSelector):
    """Counts the turns of an event loop. A client that needs fewer turns handles more responses in each of them."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        CountingSelector.turns += 1
        return super().select(timeout)


def counting_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop whose turns are counted."""
    return asyncio.SelectorEventLoop(CountingSelector())


class Stopwatch:
    """Measures the CPU time of all threads and the wall time of a ``with`` block."""

    def __enter__(self) -> Self:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def report(self, **counts: int) -> Report:
        """Return the seconds with what was done in them."""
        return {"cpu": self.cpu, "wall": self.wall, **counts}


async def serve_speed(task: Report, write: Write, version: Callable[[Contender], str]) -> None:
    """Create the client, check one result, and measure a block for each line of input."""
    case = case_named(task["case"])
    contender = _contender(case, task["contender"])
    client, measurement = _client(case, contender, task["origin"])
    memory_before = await _prepare(contender, case, task["origin"])
    await measurement.check()
    # All workers of a case start at the same time, on any core; from here on each has the client's core to itself.
    pin(task["core"])
    write(
        {
            "version": version(contender),
            "peak": peak_memory(),
            "peak_before": memory_before,
            "note": getattr(client, "note", ""),
        }
    )
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "block":
            report = await measurement.block(order["count"])
        elif order["do"] == "hold":
            report = {"hold": await measurement.longest_block_of_loop()}
        else:
            report = await measurement.embed_to_file(order["path"])
        write({**report, "peak": peak_memory()})
    await _close(client)


async def serve_once(task: Report, write: Write) -> None:
    """Measure one block without a stopwatch, for callgrind: a warm-up, then ``count`` requests."""
    # Under callgrind a program runs fifty times slower, more on a busy machine: what happens a fixed number of times per
    # second would happen for each request. So the clock is one that advances with its readings, about as fast as without.
    time.monotonic = itertools.count(time.monotonic(), _CLOCK_STEP_S).__next__
    case = case_named(task["case"])
    client, measurement = _client(case, contender_named(task["contender"], CONTENDERS), task["origin"])
    await measurement.check()
    gc.freeze()
    # The warm-up opens all connections.
    await measurement.block(3 * case.in_flight)
    await measurement.block(task["count"])
    await _close(client)
    write({"done": True})


def _contender(case: Case, name: str) -> Contender:
    return contender_named(name, STREAM_CONTENDERS if case.kind == "stream" else CONTENDERS)


def _client(case: Case, contender: Contender, origin: str) -> tuple[Any, Measurement]:
    allow_many_sockets()
    if case.kind == "stream":
        client = contender.create(origin + case.path)
    else:
        client = contender.create(_setting(case, origin), sync=case.kind == "sync")
    return client, Measurement(case, client)


async def _close(client: Any) -> None:
    closing = client.close()
    if closing is not None:
        await closing


def _setting(case: Case, origin: str) -> Setting:
    return Setting(origin + case.path, case.items, case.in_flight)


async def _prepare(contender: Contender, case: Case, origin: str) -> int:
    """Return the memory before the first response; for lists of models after a short one, so that all is imported."""
    if case.kind == "catalogue":
        short = replace(case, items=10)
        client, measurement = _client(short, contender, origin)
        await measurement.check()
        await client.close()
    return peak_memory()


def peak_memory() -> int:
    """Return the maximum memory of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        # On systems other than Linux; the value can include the parent process before exec.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class Measurement:
    """One contender in one case of the speed benchmark.

    Args:
        case: the case.
        client: its client, asynchronous or not.
    """

    def __init__(self, case: Case, client: Any) -> None:
        self._case = case
        self._client = client
        self._next_text = 0

    def _texts(self, count: int) -> list[str]:
        start, words = self._next_text, self._case.words
        self._next_text += count
        return passages(start, count, words) if words else texts(start, count)

    async def check(self) -> None:
        """Send one request and check its result."""
        case, client = self._case, self._client
        if case.kind in ("catalogue", "cached"):
            assert await client.count_models() == case.items
            return
        if case.kind == "stream":
            await check_stream(client, case.items)
            return
        if hasattr(client, "send_all"):
            return
        response = client.embed(self._texts(case.items))
        if hasattr(response, "__await__"):
            response = await response
        if case.kind == "sync":
            return
        import numpy as np

        rows = client.rows(response)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, vectors(case.items, case.dimensions), rtol=1e-6)

    async def block(self, count: int) -> Report:
        """Measure ``count`` requests, or texts in a case with many of them."""
        blocks: dict[str, Callable[[int], Awaitable[Report]]] = {
            "requests": self._concurrent_requests,
            "sync": self._sequential_requests,
            "bulk": self._many_texts,
            "catalogue": self._model_lists,
            "cached": self._lookups,
            "stream": self._streams,
        }
        return await blocks[self._case.kind](count)

    async def _concurrent_requests(self, count: int) -> Report:
        case, client = self._case, self._client
        if hasattr(client, "send_all"):
            with Stopwatch() as watch:
                client.send_all(count)
            return watch.report(requests=count, vectors=count * case.items)
        batches = iter([self._texts(case.items) for _ in range(count)])

        async def work(batches: Iterator[list[str]]) -> None:
            for batch in batches:
                client.rows(await client.embed(batch))

        turns = CountingSelector.turns
        with Stopwatch() as watch:
            await asyncio.gather(*(work(batches) for _ in range(case.in_flight)))
        turns = CountingSelector.turns - turns
        return watch.report(requests=count, vectors=count * case.items, turns=turns)

    async def _sequential_requests(self, count: int) -> Report:
        batches = [self._texts(1) for _ in range(count)]
        embed = self._client.embed
        if asyncio.iscoroutinefunction(embed):
            with Stopwatch() as watch:
                for batch in batches:
                    await embed(batch)
        else:
            with Stopwatch() as watch:
                for batch in batches:
                    embed(batch)
        return watch.report(requests=count, vectors=count)

    async def _many_texts(self, count: int) -> Report:
        case = self._case
        requests = count // case.items
        if hasattr(self._client, "send_all"):
            with Stopwatch() as watch:
                self._client.send_all(requests)
            return watch.report(requests=requests, vectors=count)
        calls = [self._texts(min(count, case.total)) for _ in range(max(1, count // case.total))]
        with Stopwatch() as watch:
            for batch in calls:
                rows = await self._client.embed_many(batch)
                assert rows.shape == (len(batch), case.dimensions)
                # So that two arrays are never held at once.
                del rows
        return watch.report(requests=requests, vectors=sum(map(len, calls)))

    async def _model_lists(self, count: int) -> Report:
        with Stopwatch() as watch:
            for _ in range(count):
                await self._client.count_models()
        return watch.report(requests=count, vectors=count * self._case.items)

    async def _lookups(self, count: int) -> Report:
        with Stopwatch() as watch:
            for _ in range(count):
                await self._client.look_up_models()
        return watch.report(requests=count, vectors=count * self._case.items)

    async def _streams(self, count: int) -> Report:
        with Stopwatch() as watch:
            for _ in range(count):
                await read_stream(self._client)
        return watch.report(requests=count, vectors=count * self._case.items)

    async def embed_to_file(self, path: str) -> Report:
        """Measure all texts of the case, written to a file."""
        batch = self._texts(self._case.total)
        with Stopwatch() as watch:
            rows = await self._client.embed_to_file(batch, path)
        assert rows == self._case.total
        return watch.report(requests=rows // self._case.items, vectors=rows)

    async def longest_block_of_loop(self) -> float:
        """Return the longest time (s) that the event loop was blocked during a request, as the median of five."""
        return statistics.median([await self._longest_block_once() for _ in range(5)])

    async def _longest_block_once(self) -> float:
        longest, done = 0.0, False

        async def yield_repeatedly() -> None:
            nonlocal longest
            while not done:
                before = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - before)

        observer = asyncio.create_task(yield_repeatedly())
        self._client.rows(await self._client.embed(self._texts(self._case.items)))
        done = True
        await observer
        return longest


async def check_stream(client: Any, chunks: int) -> None:
    """Read one stream and check its texts. The first stream also imports what is imported late."""
    received, _ = await read_stream(client)
    texts = [text for text in received if text]
    assert len(texts) == chunks, f"{len(texts)} of {chunks} texts"
    assert texts == sorted(texts, key=int), "texts in another order"


async def read_stream(client: Any) -> tuple[list[str], list[int]]:
    """Return the texts of a stream, and when each was available (ns of the monotonic clock)."""
    received: list[str] = []
    times: list[int] = []
    now = time.monotonic_ns
    if inspect.isasyncgenfunction(client.read):
        async for text in client.read():
            times.append(now())
            received.append(text)
    else:
        for text in client.read():
            times.append(now())
            received.append(text)
    return received, times
