"""The child process of a contender: creates its client and follows orders, one line of JSON each.

`benchmarks.processes.JsonProcess` starts it. The task is the first argument; what libraries print goes to standard error.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.clients import (
    FAULT_CONTENDERS,
    STREAM_CONTENDERS,
    Contender,
    Embed,
    PartialResultError,
    WaitLog,
    contender_named,
)
from benchmarks.cores import pin
from benchmarks.limits_worker import serve_client, serve_limits
from benchmarks.processes import MAX_MESSAGE
from benchmarks.service_worker import serve_service
from benchmarks.speed_worker import (
    Stopwatch,
    check_stream,
    counting_loop,
    read_stream,
    serve_once,
    serve_speed,
)

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
        "once": serve_once,
        "service": serve_service,
        "streams": _serve_streams,
        "faults": _serve_faults,
        "limits": _serve_limits_client,
        "limits-server": serve_limits,
    }[task["benchmark"]]
    try:
        with asyncio.Runner(loop_factory=counting_loop) as runner:
            runner.run(serve(task, write))
    except Exception as error:  # noqa: BLE001 # the table shows why a contender cannot take part
        write({"missing": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]})


def _version(contender: Contender) -> str:
    return importlib.metadata.version(contender.package) if contender.package else ""


async def _serve_speed(task: Report, write: Write) -> None:
    await serve_speed(task, write, _version)


# ---- streams


async def _serve_streams(task: Report, write: Write) -> None:
    contender = contender_named(task["contender"], STREAM_CONTENDERS)
    client = contender.create(task["base_url"])
    # The first stream imports what is imported late, and its text is checked.
    await check_stream(client, task["chunks"])
    pin(task["core"])
    write({"version": _version(contender)})
    for line in sys.stdin:
        delays: list[int] = []
        with Stopwatch() as watch:
            for _ in range(json.loads(line)["streams"]):
                received, times = await read_stream(client)
                late = [when - int(text) for text, when in zip(received, times, strict=True) if text]
                delays += late[_SKIPPED_EVENTS:]
        write({**watch.report(), "delays": sorted(delays)})
    await client.close()


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
