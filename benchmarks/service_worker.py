"""What a service does with llmopt, for the table of service targets: the child process.

`benchmarks.worker` imports this file. A task names one scenario; the answer holds what was measured, see `serve_service`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.clients import KEY, MODEL, Setting
from benchmarks.cores import pin
from benchmarks.peer_clients import llmopt_config
from benchmarks.speed_cases import texts

IN_FLIGHT: Final = 32
DELAY_MS: Final = 20
CALLS: Final = 3000

Report = dict[str, Any]
Write = Callable[[Report], object]


async def serve_service(task: Report, write: Write) -> None:
    """Run the scenario of the task and write its report."""
    pin(task["core"])
    scenarios = {"calls": _calls, "lists": _lists, "one list": _one_list}
    write(await scenarios[task["scenario"]](task))


async def _calls(task: Report) -> Report:
    """Many calls, one text each, 32 at the same time: how many failed, and what a call adds to the server's delay."""
    import llmopt

    setting = Setting(task["base_url"], 1, IN_FLIGHT)
    config = llmopt_config(setting) | {"cache_dir": task["folder"]}
    failed = 0
    added: list[float] = []
    async with llmopt.AsyncClient(config) as client:

        async def work() -> None:
            nonlocal failed
            for number in numbers:
                started = time.perf_counter()
                try:
                    await client.embed(f"openai/{MODEL}", texts(number, 1))
                except llmopt.LLMOptError:
                    failed += 1
                added.append(time.perf_counter() - started - DELAY_MS / 1e3)

        for count in (IN_FLIGHT, CALLS):
            # The first calls import what is needed and open the connections.
            failed, added = 0, []
            numbers = iter(range(count, 2 * count))
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return {"calls": CALLS, "failed": failed, "added_p99_ms": sorted(added)[int(0.99 * CALLS)] * 1e3}


def _providers(task: Report) -> Report:
    entries = {
        name: {"plugin": "openai", "base_url": url, "api_key": KEY} for name, url in task["urls"].items()
    }
    return {"cache_dir": task["folder"], "providers": entries}


async def _lists(task: Report) -> Report:
    """The lists of all providers at once, ``times`` times; providers that fail are errors in the result."""
    import llmopt

    names = list(task["urls"])
    seconds, lists = [], 0
    async with llmopt.AsyncClient(_providers(task)) as client:
        for _ in range(task["times"]):
            started = time.perf_counter()
            results = await client.batch_list_models(names)
            seconds.append(time.perf_counter() - started)
            lists = sum(isinstance(each, llmopt.Catalog) for each in results.values())
    return {"seconds": seconds, "lists": lists}


async def _one_list(task: Report) -> Report:
    """One list, ``times`` times, by a client made for it."""
    import llmopt

    (name,) = task["urls"]
    seconds, models = [], 0
    started = time.perf_counter()
    async with llmopt.AsyncClient(_providers(task)) as client:
        for _ in range(task["times"]):
            models = len(await client.list_models(name))
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    return {"seconds": seconds, "models": models}
