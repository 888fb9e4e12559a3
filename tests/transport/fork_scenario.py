"""A program that test_fork.py runs: it forks with a warm pool and counts wrong responses.

``python -m tests.transport.fork_scenario LOOP PORT MODE...`` runs one mode after the other and prints one JSON line per
process: its mode, its wrong bodies and its connections; the parent's line is the last of its mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import threading
from typing import Any

from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from tests.support.nightly import scaled

CALLS = scaled(100, nightly=500)
AT_ONCE = 10


async def calls(pool: ConnectionPool, port: int, count: int = CALLS) -> int:
    """Send `count` requests, and count the responses that belong to another request."""
    wrong = 0
    numbers = iter(range(count))

    async def worker() -> None:
        nonlocal wrong
        for number in numbers:
            body = f"{os.getpid()}-{number}".encode()
            answer = await pool.send(
                TransportRequest(method="POST", url=f"http://127.0.0.1:{port}/", body=body)
            )
            wrong += answer.body != body

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return wrong


def report(pool: ConnectionPool, mode: str, wrong: int) -> None:
    stats = pool.stats()
    line = json.dumps({"mode": mode, "wrong": wrong, "created": stats.created, "reused": stats.reused})
    os.write(1, line.encode() + b"\n")


def child(pool: ConnectionPool, port: int, mode: str) -> None:
    """What a forked process does with the pool that it inherited."""

    async def use() -> int:
        wrong = await calls(pool, port)
        report(pool, mode, wrong)
        await pool.aclose()
        return wrong

    run(use())


def forked(pool: ConnectionPool, port: int, mode: str) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            child(pool, port, mode)
            code = 0
        os._exit(code)
    return pid


def join(*pids: int) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with {status}"


def run(work: Any) -> Any:
    if "uvloop" in sys.argv:
        import uvloop  # type: ignore[import-not-found,unused-ignore]

        return uvloop.run(work)
    return asyncio.run(work)


async def in_flight(pool: ConnectionPool, port: int, mode: str) -> int:
    """Fork while requests are in flight, in the middle of the loop's work."""
    task = asyncio.create_task(calls(pool, port))
    while not pool.stats().in_use:
        await asyncio.sleep(0)
    pid = forked(pool, port, mode)
    wrong = await task
    join(pid)
    return wrong + await calls(pool, port)


async def fork_warm_pool(pool: ConnectionPool, port: int, mode: str) -> int:
    """Fork with a warm pool; parent and children send at the same time."""
    wrong = await calls(pool, port)
    if mode == "thread":
        pids: list[int] = []
        thread = threading.Thread(target=lambda: pids.append(forked(pool, port, mode)))
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
    else:
        pids = [forked(pool, port, mode) for _ in range(8 if mode == "eight" else 1)]
    if mode == "child only":
        join(*pids)
        return wrong + await calls(pool, port)
    wrong += await calls(pool, port)
    join(*pids)
    return wrong + await calls(pool, port)


async def processes(pool: ConnectionPool, port: int, mode: str) -> int:
    """The same with multiprocessing."""
    wrong = await calls(pool, port)
    process = multiprocessing.get_context("fork").Process(target=child, args=(pool, port, mode))
    process.start()
    wrong += await calls(pool, port)
    process.join()
    assert process.exitcode == 0
    return wrong + await calls(pool, port)


async def main(mode: str, port: int) -> None:
    pool = ConnectionPool(pool_size=AT_ONCE)
    scenes = {"in flight": in_flight, "multiprocessing": processes}
    wrong = await scenes.get(mode, fork_warm_pool)(pool, port, mode)
    report(pool, mode, wrong)
    await pool.aclose()


if __name__ == "__main__":
    for each in sys.argv[3:]:
        run(main(each, int(sys.argv[2])))
