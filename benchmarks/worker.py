"""The child process of a contender: creates its client and follows orders, one line of JSON each.

`benchmarks.processes.JsonProcess` starts it. The task is the first argument; what libraries print goes to standard error.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import inspect
import json
import logging
import os
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, Final, Self

from benchmarks.clients import (
    CONTENDERS,
    FAULT_CONTENDERS,
    STREAM_CONTENDERS,
    Contender,
    Embed,
    PartialResultError,
    Setting,
    WaitLog,
    contender_named,
)
from benchmarks.limits_worker import serve_client, serve_limits
from benchmarks.processes import MAX_MESSAGE
from benchmarks.speed_cases import Case, case_named, passages, texts, vectors

_ABOUT_WAITING: Final = re.compile(r"retry|retri|wait|sleep|back.?off", re.IGNORECASE)
# The first events of a stream say more about the request than about the stream.
_SKIPPED_EVENTS: Final = 5

Report = dict[str, Any]
Write = Callable[[Report], object]


def main() -> None:
    """Run the task that the command line contains."""
    task = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def write(report: Report) -> None:
        out.write(json.dumps(report) + "\n")

    serve = {
        "speed": _serve_speed,
        "streams": _serve_streams,
        "faults": _serve_faults,
        "limits": _serve_limits_client,
        "limits-server": serve_limits,
    }[task["benchmark"]]
    try:
        asyncio.run(serve(task, write))
    except Exception as error:  # noqa: BLE001 # the table shows why a contender cannot take part
        write({"missing": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]})


def _version(contender: Contender) -> str:
    return importlib.metadata.version(contender.package) if contender.package else ""


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


# ---- speed


async def _serve_speed(task: Report, write: Write) -> None:
    contender, case = contender_named(task["contender"], CONTENDERS), case_named(task["case"])
    client = contender.create(_setting(case, task["origin"]), sync=case.kind == "sync")
    measurement = Measurement(case, client)
    memory_before = await _prepare(contender, case, task["origin"])
    await measurement.check()
    write(
        {
            "version": _version(contender),
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
    closing = client.close()
    if closing is not None:
        await closing


def _setting(case: Case, origin: str) -> Setting:
    return Setting(origin + case.path, case.items, case.in_flight)


async def _prepare(contender: Contender, case: Case, origin: str) -> int:
    """Return the memory before the first response; for the catalogue after a short one, so that all is imported."""
    if case.kind == "catalogue":
        short = replace(case, items=10)
        client = contender.create(_setting(short, origin))
        await Measurement(short, client).check()
        await client.close()
    return peak_memory()


def peak_memory() -> int:
    """Return the maximum memory of this process so far, in bytes."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 # the shortest way
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
        if case.kind == "catalogue":
            assert await client.count_models() == case.items
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

        with Stopwatch() as watch:
            await asyncio.gather(*(work(batches) for _ in range(case.in_flight)))
        return watch.report(requests=count, vectors=count * case.items)

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
        batch = self._texts(count)
        with Stopwatch() as watch:
            rows = await self._client.embed_many(batch)
        assert rows.shape == (count, case.dimensions)
        return watch.report(requests=requests, vectors=count)

    async def _model_lists(self, count: int) -> Report:
        with Stopwatch() as watch:
            for _ in range(count):
                await self._client.count_models()
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


# ---- streams


async def _serve_streams(task: Report, write: Write) -> None:
    contender = contender_named(task["contender"], STREAM_CONTENDERS)
    client = contender.create(task["base_url"])
    # The first stream imports what is imported late, and its text is checked.
    received, _ = await _read_stream(client)
    chunks = [text for text in received if text]
    assert len(chunks) == task["chunks"], f"{len(chunks)} of {task['chunks']} texts"
    assert chunks == sorted(chunks, key=int), "texts in another order"
    write({"version": _version(contender)})
    for line in sys.stdin:
        delays: list[int] = []
        with Stopwatch() as watch:
            for _ in range(json.loads(line)["streams"]):
                received, times = await _read_stream(client)
                late = [when - int(text) for text, when in zip(received, times, strict=True) if text]
                delays += late[_SKIPPED_EVENTS:]
        write({**watch.report(), "delays": sorted(delays)})
    await client.close()


async def _read_stream(client: Any) -> tuple[list[str], list[int]]:
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


# ---- faults


class WaitLogHandler(logging.Handler):
    """Records the log records that are about waiting."""

    def __init__(self, waits: WaitLog) -> None:
        super().__init__(logging.INFO)
        self._waits = waits

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _ABOUT_WAITING.search(text):
            self._waits.add_log(f"{record.name}: {text}"[:MAX_MESSAGE])


async def _serve_faults(task: Report, write: Write) -> None:
    contender, waits = contender_named(task["contender"], FAULT_CONTENDERS), WaitLog()
    embed: Embed = contender.create(task["origin"], task["deadline"], waits)
    if task["probe"]:
        write({"version": _version(contender)})
        return
    await embed(["warm up"])
    logging.getLogger().addHandler(WaitLogHandler(waits))
    logging.getLogger().setLevel(logging.INFO)
    waits.events.clear()
    write({"ready": True})
    sys.stdin.readline()
    start = time.monotonic()
    report = await _call(embed, task)
    seconds = time.monotonic() - start
    write({**report, "seconds": seconds, "start": start, "events": waits.events, "logs": waits.logs})


async def _call(embed: Embed, task: Report) -> Report:
    timeout = asyncio.timeout(task["window"])
    try:
        async with timeout:
            result = await embed(task["texts"])
            return {"rows": result.rows, "indices": result.indices}
    except PartialResultError as failure:
        return {"rows": failure.rows, "error": failure.name}
    except Exception as error:  # noqa: BLE001 # every error is a result
        if timeout.expired():
            return {"still_waiting": True}
        description = {"error": type(error).__name__, "message": str(error)[:MAX_MESSAGE]}
        return description | {"retry_after": getattr(error, "retry_after", None)}


# ---- limits


async def _serve_limits_client(task: Report, write: Write) -> None:
    await serve_client(task, write, _version)


if __name__ == "__main__":
    main()
