"""A process that forks in the middle of using a store; run by test_forks. Prints one JSON object."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmopt.cache.disk import DiskStore
from llmopt.cache.store import MemoryStore
from tests.cache.stores import item, key


def locks() -> int:
    """Locks that this process holds, as the system sees it."""
    return sum(f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines())


def child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> tuple[int, int]:
    """Run something in a child; its process id and where its answer comes."""
    reading, writing = os.pipe()
    pid = fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        answer: Any = work()
    except BaseException:
        answer = traceback.format_exc()
    with os.fdopen(writing, "w") as pipe:
        json.dump(answer, pipe)
    if fork is os.fork:
        # The usual way out, on which everything is torn down.
        sys.exit(0)
    os._exit(0)


def answer_of(pid: int, reading: int) -> Any:
    with os.fdopen(reading) as pipe:
        found = json.load(pipe)
    os.waitpid(pid, 0)
    return found


def use(store: DiskStore, first: int) -> Any:
    """Read what the parent wrote, write something, and read it again."""

    async def main() -> Any:
        before = await store.get([key(1), key(2)])
        await store.put([item(first + each) for each in range(600)])
        after = await store.get([key(first), key(first + 599)])
        held = locks()
        await store.aclose()
        return [sum(value is not None for value in found) for found in (before, after)], held

    return asyncio.run(main())


def warm(folder: Path) -> DiskStore:
    store = DiskStore(folder)

    async def main() -> None:
        await store.put([item(1), item(2)])
        assert await store.get([key(1)]) == [b"value 1"]

    asyncio.run(main())
    return store


def checked(folder: Path) -> dict[str, Any]:
    connection = sqlite3.connect(folder / "cache-1.db")
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    connection.close()
    return {"integrity": integrity, "entries": entries, "aside": len(list(folder.glob("*.corrupt-*")))}


def many(folder: Path) -> dict[str, Any]:
    """Eight children of a warm store, all at work at once with the parent."""
    store = warm(folder)
    threads = threading.active_count()
    started = [child(lambda number=number: use(store, 1_000 * number)) for number in range(1, 9)]
    mine = use(store, 100_000)
    found = [answer_of(*each) for each in started]
    return {"children": found, "parent": mine, "threads": threads, **checked(folder)}


def unwritten(folder: Path) -> dict[str, Any]:
    """What was still to be written is written once, by the parent."""
    store = warm(folder)

    async def main() -> None:
        await store.put([item(number) for number in range(5_000)])

    asyncio.run(main())
    found = answer_of(*child(lambda: use(store, 10_000)))
    asyncio.run(store.aclose())
    return {"children": [found], **checked(folder)}


def untold(folder: Path) -> dict[str, Any]:
    """A fork that Python knows nothing of."""
    store = warm(folder)
    libc = ctypes.CDLL(None)
    found = answer_of(*child(lambda: use(store, 5_000), libc.fork))
    mine = use(store, 100_000)
    return {"children": [found], "parent": mine, **checked(folder)}


def stuck(folder: Path) -> dict[str, Any]:
    """The thread does not come to rest in time: the child goes without, the parent goes on."""
    store = warm(folder)
    gate = threading.Event()
    assert store._worker is not None
    store._worker.executor.submit(gate.wait, 10)
    import llmopt.cache.disk

    llmopt.cache.disk._FORK_TIMEOUT_S = 0.01
    found = child(lambda: use(store, 5_000))
    gate.set()
    mine = use(store, 100_000)
    return {"children": [answer_of(*found)], "parent": mine, **checked(folder)}


def memory(folder: Path) -> dict[str, Any]:
    """A store in memory, whose lock another thread holds most of the time."""
    store = MemoryStore()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            store.put_nowait([item(number) for number in range(100)])

    thread = threading.Thread(target=busy)
    thread.start()

    def look() -> int:
        store.put_nowait([item(1_000)])
        return sum(value is not None for value in store.get_nowait([key(1_000)]))

    found = []
    for _ in range(20):
        started = child(look)
        found.append(answer_of(*started))
    stop.set()
    thread.join()
    return {"children": found}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
