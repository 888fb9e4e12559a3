"""Run as a program by test_fork.py: forks with a warm client, and counts vectors that are another text's.

``python -m tests.engine.fork_scenario KIND URL CALLS`` prints a JSON line per process, the parent's last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llmopt
from tests.support.faults import vector_for

AT_ONCE = 8
MODEL = "server/m"
CHILDREN = 8


def texts(count: int, turn: str) -> list[str]:
    return [f"{os.getpid()} {turn} {number}" for number in range(count)]


def wrong(found: Any, text: str) -> bool:
    return bool(found.vectors[0].tolist() != vector_for(text).tolist())


async def calls(client: llmopt.AsyncClient, count: int, turn: str) -> int:
    """So many calls of an asynchronous client; how many were answered with another's vector."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> bool:
        async with room:
            return wrong(await client.embed(MODEL, [text]), text)

    return sum(await asyncio.gather(*map(one, texts(count, turn))))


def sync_calls(client: llmopt.Client, count: int, turn: str) -> int:
    """The same of a synchronous one, from several threads."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(lambda text: wrong(client.embed(MODEL, [text]), text), texts(count, turn)))


def forked(work: Callable[[], int], count: int) -> int:
    """A child that works and reports."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            report("child", work(), count)
            code = 0
        os._exit(code)
    return pid


def report(who: str, found: int, count: int) -> None:
    os.write(1, json.dumps({"who": who, "wrong": found, "calls": count}).encode() + b"\n")


def join(pids: list[int]) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with {status}"


def story(here: Callable[[str], int], there: Callable[[str], int], count: int) -> None:
    """Warm; one child alone; one child beside the parent; eight beside it; and the parent alone again."""
    found = here("warm")
    join([forked(lambda: there("alone"), count)])
    pid = forked(lambda: there("beside"), count)
    found += here("beside a child")
    join([pid])
    pids = [forked(lambda: there("many"), count) for _ in range(CHILDREN)]
    found += here("beside many")
    join(pids)
    found += here("at last")
    report("parent", found, 4 * count)


def synchronous(config: Any, count: int) -> None:
    client = llmopt.Client(config)

    def child(turn: str) -> int:
        found = sync_calls(client, count, turn)
        client.close()
        return found

    story(lambda turn: sync_calls(client, count, turn), child, count)
    client.close()


def asynchronous(config: Any, count: int) -> None:
    loop = asyncio.new_event_loop()
    client = llmopt.AsyncClient(config)

    def child(turn: str) -> int:
        async def work() -> int:
            async with client:
                return await calls(client, count, turn)

        # A loop of its own: the parent's is not there any more for a child.
        return asyncio.run(work())

    story(lambda turn: loop.run_until_complete(calls(client, count, turn)), child, count)
    loop.run_until_complete(client.aclose())
    loop.close()


if __name__ == "__main__":
    kind, url, calls_each = sys.argv[1:]
    entry = {"plugin": "local", "base_url": url, "pool_size": AT_ONCE}
    {"sync": synchronous, "async": asynchronous}[kind]({"providers": {"server": entry}}, int(calls_each))
