"""A contender's own process: reads streams as it is told, a line of JSON at a time."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import inspect
import json
import os
import sys
import time
from typing import Any

from benchmarks.streams.contenders import contender_named

MESSAGE = 300


def main() -> None:
    """Read the task from the command line, the orders from standard input."""
    task = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print goes to standard error.
    os.dup2(2, 1)

    def say(**report: Any) -> None:
        out.write(json.dumps(report) + "\n")

    try:
        asyncio.run(_serve(task, say))
    except Exception as error:  # noqa: BLE001 # whatever keeps it from taking part is said in the table
        say(missing=f"{type(error).__name__}: {error}"[:MESSAGE])


async def _serve(task: dict[str, Any], say: Any) -> None:
    contender = contender_named(task["contender"])
    client = contender.make(task["base_url"])
    # The first stream imports what is imported late, and is checked.
    texts, _ = await _read(client)
    sent = [text for text in texts if text]
    assert len(sent) == task["chunks"], f"{len(sent)} of {task['chunks']} texts"
    assert sent == sorted(sent, key=int), "texts in another order"
    say(version=importlib.metadata.version(contender.package) if contender.package else "")
    for line in sys.stdin:
        say(**await _block(client, json.loads(line)["streams"]))
    await client.close()


async def _block(client: Any, streams: int) -> dict[str, Any]:
    delays: list[float] = []
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(streams):
        texts, moments = await _read(client)
        # Of each stream the first events say more of the request than of the stream.
        late = [moment - int(text) for text, moment in zip(texts, moments, strict=True) if text]
        delays += late[5:]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "delays": sorted(delays)}


async def _read(client: Any) -> tuple[list[str], list[int]]:
    texts: list[str] = []
    moments: list[int] = []
    now = time.monotonic_ns
    if inspect.isasyncgenfunction(client.read):
        async for text in client.read():
            moments.append(now())
            texts.append(text)
    else:
        for text in client.read():
            moments.append(now())
            texts.append(text)
    return texts, moments


if __name__ == "__main__":
    main()
