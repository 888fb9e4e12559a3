"""What a chat stream costs each client, and how late its text arrives, against the same server.

    python -m benchmarks streams --venvs /tmp/peers
    python -m benchmarks streams --python openai=/tmp/peers/openai/bin/python --json streams.json

It takes a minute and needs llmopt and its OpenAI plugin. Each contender has its own process, all traffic is on loopback, and
rounds alternate. There are two cases: chunks that are sent one by one at a fixed pace, and chunks that are sent all at
once. A delay is the time from the server's write of a chunk until the program has its text; that of the bare socket is the
delay of the machine itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import STREAM_CONTENDERS, Contender
from benchmarks.cores import client_and_server_cores
from benchmarks.processes import (
    CHECKOUT,
    START_TIMEOUT_S,
    Environments,
    JsonProcess,
    ProcessFailedError,
    ServerProcess,
    add_environment_arguments,
    child_environment,
    machine,
)
from benchmarks.tables import aligned

CHUNKS: Final = 500
CASES: Final = {
    "paced": (f"{CHUNKS} chunks, one every 0.5 ms", 500, 4),
    "burst": (f"{CHUNKS} chunks at once", 0, 20),
}
"""Title, pace in microseconds, streams per round."""

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    names = [each.name for each in STREAM_CONTENDERS]
    parser.add_argument(
        "--case",
        action="append",
        choices=list(CASES),
        metavar="NAME",
        help=f"one case, may be repeated: {', '.join(CASES)}",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one contender, may be repeated: {', '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds (default: 7)")
    add_environment_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:  # noqa: ARG001
    """Measure and print the tables."""
    environments = Environments.from_arguments(arguments)
    results: dict[str, list[Row]] = {}
    client_core, server_core = client_and_server_cores() or (None, None)
    with ServerProcess("streams", core=server_core) as server:
        for name in arguments.case or CASES:
            results[name] = _measure(name, arguments, environments, server.origin, client_core)
            print(_table(name, results[name]), flush=True)
    print(f"({machine()})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine(), "cases": results}, indent=1) + "\n")


def _measure(
    name: str, arguments: argparse.Namespace, environments: Environments, origin: str, core: int | None
) -> list[Row]:
    _, pace, streams = CASES[name]
    base_url = f"{origin}/{CHUNKS}-{pace}us/v1"
    chosen = [
        each for each in STREAM_CONTENDERS if not arguments.contender or each.name in arguments.contender
    ]
    rows, blocks = [], {}
    with ExitStack() as stack:
        processes = {}
        for contender in chosen:
            process = stack.enter_context(_start(contender, environments, base_url, core))
            processes[contender.name], blocks[contender.name] = process, list[Row]()
            rows.append({"name": contender.name, "title": contender.title, **_report(process)})
        running = [row for row in rows if "missing" not in row]
        for number in range(arguments.rounds):
            # Each round begins with another contender, so that none always runs after the same one.
            first = number % len(running) if running else 0
            for row in [*running[first:], *running[:first]]:
                blocks[row["name"]].append(processes[row["name"]].ask(streams=streams))
    return [row | _summary(blocks[row["name"]], streams * CHUNKS) for row in rows]


def _start(contender: Contender, environments: Environments, base_url: str, core: int | None) -> JsonProcess:
    task = {
        "benchmark": "streams",
        "contender": contender.name,
        "base_url": base_url,
        "chunks": CHUNKS,
        "core": core,
    }
    environment = child_environment(checkout=contender.environment == CHECKOUT)
    return JsonProcess(environments.python(contender.environment), task, environment)


def _report(process: JsonProcess) -> Row:
    try:
        return process.receive(START_TIMEOUT_S)
    except ProcessFailedError as error:
        return {"missing": str(error)}


def _summary(blocks: list[Row], chunks: int) -> Row:
    if not blocks:
        return {}
    return {
        "cpu_us": statistics.median(block["cpu"] / chunks for block in blocks) * 1e6,
        "cpu_us_rounds": [block["cpu"] / chunks * 1e6 for block in blocks],
        "delay_us": statistics.median(_quantile_us(block["delays"], 0.5) for block in blocks),
        "delay_us_p99": statistics.median(_quantile_us(block["delays"], 0.99) for block in blocks),
        # The median of the rounds' maxima: a single maximum may be the turn of another program.
        "delay_us_worst": statistics.median(block["delays"][-1] / 1e3 for block in blocks),
    }


def _quantile_us(delays_ns: list[int], share: float) -> float:
    return delays_ns[int(share * (len(delays_ns) - 1))] / 1e3


def _table(name: str, rows: list[Row]) -> str:
    table = [["", "CPU per chunk, µs", "delay, median", "p99", "worst"]]
    for row in rows:
        title = f"{row['title']} {row.get('version', '')}".strip()
        if "cpu_us" in row:
            columns = ("cpu_us", "delay_us", "delay_us_p99", "delay_us_worst")
            table.append([title, *(f"{row[column]:.1f}" for column in columns)])
        else:
            table.append([title, f"not run: {row.get('missing')}", "", "", ""])
    lines = ["", CASES[name][0], aligned(table), *_targets(name, {row["name"]: row for row in rows})]
    return "\n".join(lines)


def _targets(name: str, rows: dict[str, Row]) -> list[str]:
    """The two targets, and what was measured."""
    lines = []
    llmopt, openai, socket = (rows.get(each, {}) for each in ("llmopt", "openai", "sockets"))
    if "cpu_us" in llmopt and "cpu_us" in openai:
        ratio = openai["cpu_us"] / llmopt["cpu_us"]
        lines.append(f"CPU of llmopt: 1/{ratio:.1f} of openai's (target: at most 1/2)")
    if name == "paced" and "cpu_us" in llmopt and "cpu_us" in socket:
        median = (llmopt["delay_us"] - socket["delay_us"]) / 1e3
        worst = (llmopt["delay_us_worst"] - socket["delay_us_worst"]) / 1e3
        lines.append(f"added delay: median {median:.3f} ms (target: < 1), worst {worst:.3f} ms (target: < 5)")
    return lines
