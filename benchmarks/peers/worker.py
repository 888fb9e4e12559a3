"""One contender meets one case: run by `benchmarks.faults` in the contender's own environment.

The worker makes its client, embeds one text to warm up, writes a line, waits for one, embeds the texts it is given
and writes what came of it, one JSON value a line. What libraries print goes to standard error.
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
from typing import Any, TextIO

from benchmarks.peers.contenders import Contender, Embed, PartlyFailedError, Seen, contender_named

MESSAGE = 300  # characters of an error that are kept
ABOUT_WAITING = re.compile(r"retry|retri|wait|sleep|back.?off", re.IGNORECASE)
Report = dict[str, Any]


class Listener(logging.Handler):
    """Keeps the log records that speak of waiting."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(logging.INFO)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if ABOUT_WAITING.search(text):
            self._seen.log(f"{record.name}: {text}"[:MESSAGE])


def main() -> None:
    """Read the task from the command line, and meet the case."""
    task: Report = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender = contender_named(task["contender"])
    if task.get("probe"):
        _write(out, _probe(contender))
        return
    asyncio.run(_meet(contender, task, out))


def _write(out: TextIO, report: Report) -> None:
    out.write(json.dumps(report) + "\n")


def _probe(contender: Contender) -> Report:
    """Say whether the contender can be made here, and its version."""
    try:
        contender.opened("http://127.0.0.1:9", None, Seen())
    except Exception as error:  # noqa: BLE001 # whatever keeps it from being imported is said in the table
        return {"missing": f"{type(error).__name__}: {error}"[:MESSAGE]}
    return {"version": importlib.metadata.version(contender.package)}


async def _meet(contender: Contender, task: Report, out: TextIO) -> None:
    seen = Seen()
    embed = contender.opened(task["origin"], task["deadline"], seen)
    await embed(["warm up"])
    logging.getLogger().addHandler(Listener(seen))
    logging.getLogger().setLevel(logging.INFO)
    seen.events.clear()
    _write(out, {"ready": True})
    sys.stdin.readline()
    start = time.monotonic()
    report = await _outcome(embed, task)
    report |= {"seconds": time.monotonic() - start, "start": start, "events": seen.events, "logs": seen.logs}
    _write(out, report)


async def _outcome(embed: Embed, task: Report) -> Report:
    window = asyncio.timeout(task["window"])
    try:
        async with window:
            answer = await embed(task["texts"])
            return {"rows": answer.rows, "indices": answer.indices}
    except PartlyFailedError as failure:
        return {"rows": failure.rows, "error": failure.name}
    except Exception as error:  # noqa: BLE001 # every outcome is one to report
        if window.expired():
            return {"still_waiting": True}
        told = {"error": type(error).__name__, "message": str(error)[:MESSAGE]}
        return told | {"retry_after": getattr(error, "retry_after", None)}


if __name__ == "__main__":
    main()
