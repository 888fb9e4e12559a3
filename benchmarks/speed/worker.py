"""A contender's own process: makes its client, and does as it is told, a line of JSON at a time."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
from dataclasses import replace
from typing import Any, TextIO

from benchmarks.speed.cases import Case, case_named
from benchmarks.speed.contenders import Contender, contender_named
from benchmarks.speed.contenders.base import Setting
from benchmarks.speed.drive import Driver

MESSAGE = 300


def main() -> None:
    """Read the task from the command line, the orders from standard input."""
    task = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print goes to standard error.
    os.dup2(2, 1)
    contender, case = contender_named(task["contender"]), case_named(task["case"])
    try:
        asyncio.run(_serve(contender, case, task["origin"], out))
    except Exception as error:  # noqa: BLE001 # whatever keeps it from taking part is said in the table
        _say(out, {"missing": f"{type(error).__name__}: {error}"[:MESSAGE]})


def _say(out: TextIO, report: dict[str, Any]) -> None:
    out.write(json.dumps(report) + "\n")


async def _serve(contender: Contender, case: Case, origin: str, out: TextIO) -> None:
    setting = Setting(origin + case.path, case.items, case.in_flight)
    sync = case.kind == "sync" and contender.made_sync is not None
    client = contender.sync_client(setting) if sync else contender.client(setting)
    driver = Driver(case, client)
    before = await _warm(contender, case, origin)
    await driver.check()
    version = importlib.metadata.version(contender.package)
    first = {"version": version, "peak": peak(), "peak_before": before, "note": getattr(client, "note", "")}
    _say(out, first)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "block":
            report = await driver.block(order["count"])
        elif order["do"] == "hold":
            report = {"hold": await driver.hold()}
        else:
            report = await driver.stored(order["path"])
        _say(out, {**report, "peak": peak()})
    closed = client.close()
    if closed is not None:
        await closed


async def _warm(contender: Contender, case: Case, origin: str) -> int:
    """The memory before the first answer; before a catalogue came with everything imported that a short one takes."""
    if case.kind == "catalogue":
        few = replace(case, items=10)
        client = contender.client(Setting(origin + few.path, few.items, few.in_flight))
        await Driver(few, client).check()
        await client.close()
    return peak()


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 # the shortest way
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        # Elsewhere than on Linux; a process's own may begin with its parent's.
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
