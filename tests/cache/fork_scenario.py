"""A process that forks while it uses a store; test_fork.py runs it. Prints one JSON object."""

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
from tests.support.nightly import scaled

MEMORY_FORKS = scaled(6, nightly=20)
"""Each fork meets the lock, held or free, by chance."""


def locks() -> int:
    """Number of file locks that this process holds, by /proc/locks."""
    return sum(f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines())


def child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> tuple[int, int]:
    """Run a function in a child process; returns its process id and the pipe with the result."""
    read_end, write_end = os.pipe()
    pid = fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    try:
        result: Any = work()
    except BaseException:
        result = traceback.format_exc()
    with os.fdopen(write_end, "w") as pipe:
        json.dump(result, pipe)
    if fork is os.fork:
        # The normal exit, which runs every finalizer.
        sys.exit(0)
    os._exit(0)


def result_of(pid: int, read_end: int) -> Any:
    with os.fdopen(read_end) as pipe:
        result = json.load(pipe)
    os.waitpid(pid, 0)
    return result


def use(store: DiskStore, first: int) -> Any:
    """Read what the parent wrote, write something, and read it again."""

    async def main() -> Any:
        before = await store.get([key(1), key(2)])
        await store.put([item(first + each) for each in range(600)])
        after = await store.get([key(first), key(first + 599)])
        held = locks()
        await store.aclose()
        return [sum(value is not None for value in values) for values in (before, after)], held

    return asyncio.run(main())


def warm(folder: Path) -> DiskStore:
    store = DiskStore(folder)

    async def main() -> None:
        await store.put([item(1), item(2)])
        assert await store.get([key(1)]) == [b"value 1"]

    asyncio.run(main())
    return store


def inspect_database(folder: Path) -> dict[str, Any]:
    connection = sqlite3.connect(folder / "cache-1.db")
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    connection.close()
    return {"integrity": integrity, "entries": entries, "quarantined": len(list(folder.glob("*.corrupt-*")))}


def many(folder: Path) -> dict[str, Any]:
    """Eight children of an open store use it at the same time as the parent."""
    store = warm(folder)
    threads = threading.active_count()
    started = [child(lambda number=number: use(store, 1_000 * number)) for number in range(1, 9)]
    parent = use(store, 100_000)
    results = [result_of(*each) for each in started]
    return {"children": results, "parent": parent, "threads": threads, **inspect_database(folder)}


def unwritten(folder: Path) -> dict[str, Any]:
    """Entries in the write buffer are written once, by the parent."""
    store = warm(folder)

    async def main() -> None:
        await store.put([item(number) for number in range(5_000)])

    asyncio.run(main())
    result = result_of(*child(lambda: use(store, 10_000)))
    asyncio.run(store.aclose())
    return {"children": [result], **inspect_database(folder)}


def fork_in_c(folder: Path) -> dict[str, Any]:
    """A fork in C, which does not run Python's fork hooks."""
    store = warm(folder)
    libc = ctypes.CDLL(None)
    result = result_of(*child(lambda: use(store, 5_000), libc.fork))
    parent = use(store, 100_000)
    return {"children": [result], "parent": parent, **inspect_database(folder)}


def busy_worker(folder: Path) -> dict[str, Any]:
    """The worker thread does not become idle in time: the child has no store, the parent goes on."""
    store = warm(folder)
    gate = threading.Event()
    assert store._worker is not None
    store._worker.executor.submit(gate.wait, 10)
    import llmopt.cache.disk

    llmopt.cache.disk._FORK_TIMEOUT_S = 0.01
    started = child(lambda: use(store, 5_000))
    gate.set()
    parent = use(store, 100_000)
    return {"children": [result_of(*started)], "parent": parent, **inspect_database(folder)}


def memory(folder: Path) -> dict[str, Any]:
    """A memory store whose lock another thread holds most of the time."""
    store = MemoryStore()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            store.put_nowait([item(number) for number in range(100)])

    thread = threading.Thread(target=busy)
    thread.start()

    def put_and_get() -> int:
        store.put_nowait([item(1_000)])
        return sum(value is not None for value in store.get_nowait([key(1_000)]))

    results = [result_of(*child(put_and_get)) for _ in range(MEMORY_FORKS)]
    stop.set()
    thread.join()
    return {"children": results}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
