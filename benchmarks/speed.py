"""What each client costs against the same server: CPU per request and per vector, wall time, memory, start-up.

    python -m benchmarks speed --quick
    python -m benchmarks speed --venvs /tmp/peers --json speed.json --docs docs
    python -m benchmarks speed --callgrind --json speed.json --docs docs

The first command takes less than a minute and measures llmopt and bare aiohttp in three cases. The second takes 25
minutes, measures all contenders in all cases and writes docs/performance.md. The third counts the instructions of a
request; it needs valgrind. All need llmopt, its OpenAI plugin and the extra `bench`. Each contender has its own process,
which is started anew three to five times in a case, all traffic is on loopback, and rounds alternate between contenders.
With --json a run can be continued: the cases that are measured replace those in the file, the others stay.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import CONTENDERS, STREAM_CONTENDERS, Contender, contender_named
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
from benchmarks.speed_callgrind import COUNTED, count_instructions, require_valgrind
from benchmarks.speed_cases import CASES, CURVES, Case, all_cases
from benchmarks.speed_processes import measure_first, measure_service, measure_start, measure_walk
from benchmarks.speed_results import Results
from benchmarks.speed_targets import targets_text

_QUICK_CASES: Final = ("one-64", "large", "numbers-512")
_QUICK_CONTENDERS: Final = ("floor", "llmopt", "llmopt-off")
_QUICK_STARTS: Final = 2
_COUNTED_CONTENDERS: Final = ("floor", "llmopt", "llmopt-off")
_MIN_ITEMS_FOR_LOOP: Final = 128
"""Texts per request from which on it is measured how long the event loop is blocked."""
_STEP: Final = 4_096
_MAX_SLOWNESS: Final = 4.0
"""A contender whose block takes this many times longer than intended is measured in one start only."""

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    cases = [*dict.fromkeys([*(case.name for case in CASES), *(curve.name for curve in CURVES)])]
    names = [*dict.fromkeys(each.name for each in (*CONTENDERS, *STREAM_CONTENDERS))]
    parser.add_argument(
        "--quick", action="store_true", help="less than a minute: llmopt and aiohttp in three cases"
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=cases,
        metavar="NAME",
        help=f"one case or curve, may be repeated: {', '.join(cases)}",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one contender, may be repeated: {', '.join(names)}",
    )
    parser.add_argument(
        "--starts", type=int, help="how often each worker is started, instead of three to five"
    )
    parser.add_argument(
        "--rounds", type=int, help="rounds for each start, instead of the number of each case"
    )
    parser.add_argument(
        "--callgrind",
        action="store_true",
        help=f"count user instructions per request under valgrind instead ({', '.join(COUNTED)})",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="PATH",
        help="a checkout of an earlier version, whose first request is compared; --python before=PATH names its interpreter",
    )
    add_environment_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="read and write all results in this file")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="write the tables of performance.md and the plots there"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing; show the results in the file")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measure, print the tables, and write them to the documentation."""
    if sys.platform == "win32":
        parser.error("this benchmark needs a POSIX system")
    if arguments.callgrind:
        require_valgrind(parser)
    environments = Environments.from_arguments(arguments)
    results = Results.load(arguments.json)
    for case in all_cases():
        if _selected(case, arguments):
            _measure(case, arguments, environments, results)
            if arguments.json is not None:
                results.save(arguments.json)
    print(results.text())
    print(targets_text(results))
    if arguments.docs is not None:
        from benchmarks.speed_pages import write_pages

        write_pages(results, arguments.docs)


def _selected(case: Case, arguments: argparse.Namespace) -> bool:
    if arguments.render:
        return False
    if arguments.callgrind:
        return case.name in (arguments.case or COUNTED)
    if arguments.case:
        curves = [curve for curve in CURVES if curve.name in arguments.case]
        return case.name in arguments.case or any(case in curve.cases for curve in curves)
    return not arguments.quick or case.name in _QUICK_CASES


def _measure(case: Case, arguments: argparse.Namespace, environments: Environments, results: Results) -> None:
    contenders = _contenders(case, arguments)
    print(case.title, flush=True)
    if arguments.callgrind:
        for contender in contenders:
            results.put_instructions(case, contender.name, count_instructions(case, contender, environments))
        return
    starts = arguments.starts or (_QUICK_STARTS if arguments.quick else case.starts)
    case = replace(case, starts=starts, rounds=arguments.rounds or case.rounds)
    started = time.monotonic()
    rows = _rows(case, contenders, environments, arguments.before)
    results.put(case, rows, machine=machine(), seconds=time.monotonic() - started)


def _contenders(case: Case, arguments: argparse.Namespace) -> list[Contender]:
    chosen = arguments.contender
    if chosen is None and (arguments.quick or arguments.callgrind):
        chosen = _COUNTED_CONTENDERS if arguments.callgrind else _QUICK_CONTENDERS
    known = STREAM_CONTENDERS if case.kind == "stream" else CONTENDERS
    return [contender_named(name, known) for name in case.contenders if not chosen or name in chosen]


def _rows(
    case: Case, contenders: Sequence[Contender], environments: Environments, before: Path | None
) -> list[Row]:
    if case.kind == "start":
        return measure_start(contenders, environments, case.rounds)
    if case.kind == "first":
        return measure_first(contenders, environments, case.rounds, before)
    if case.kind == "walk":
        return measure_walk(environments)
    if case.kind == "service":
        return measure_service(environments, case.starts)
    return measure_case(case, contenders, environments)


# ---- cases with a server


def measure_case(case: Case, contenders: Sequence[Contender], environments: Environments) -> list[Row]:
    """Return a row for each contender, with all measurements, or with the reason why it could not take part."""
    rows: list[Row] = [{"contender": each.name, "title": each.title, "rounds": []} for each in contenders]
    sizes: dict[str, int] = {}
    client_core, server_core = client_and_server_cores() or (None, None)
    kind = "streams" if case.kind == "stream" else "embeddings"
    with ServerProcess(kind, environments.python("server"), server_core) as server:
        for start in range(case.starts):
            running = {
                row["contender"]: (row, contender)
                for row, contender in zip(rows, contenders, strict=True)
                if not _is_finished(case, row)
            }
            with ExitStack() as stack:
                workers = _start_workers(case, running, environments, server.origin, client_core, stack)
                if case.kind == "stored":
                    _measure_files(rows, workers)
                else:
                    _measure_rounds(case, start, rows, workers, sizes, server)
    for row in rows:
        _print_row(case, row)
    return rows


def _is_finished(case: Case, row: Row) -> bool:
    slow = bool(row["rounds"]) and row["rounds"][-1]["wall"] > _MAX_SLOWNESS * case.seconds
    return "missing" in row or slow


def _start_workers(
    case: Case,
    running: dict[str, tuple[Row, Contender]],
    environments: Environments,
    origin: str,
    core: int | None,
    stack: ExitStack,
) -> dict[str, JsonProcess]:
    """Start all workers at the same time, and wait until each has imported its client and checked a result."""
    started = {}
    for name, (row, contender) in running.items():
        python = environments.python(contender.environment)
        failure = environments.failure(contender.environment)
        if failure is not None:
            _set_missing(row, failure)
            continue
        task = {"benchmark": "speed", "contender": name, "case": case.name, "origin": origin, "core": core}
        environment = child_environment(checkout=contender.environment == CHECKOUT)
        try:
            started[name] = stack.enter_context(JsonProcess(python, task, environment))
        except OSError as error:
            _set_missing(row, f"{type(error).__name__}: {error}")
    return {name: worker for name, worker in started.items() if _is_ready(*running[name], worker)}


def _is_ready(row: Row, contender: Contender, worker: JsonProcess) -> bool:
    try:
        report = worker.receive(START_TIMEOUT_S)
    except ProcessFailedError as error:
        report = {"missing": str(error)}
    if "missing" in report:
        _set_missing(row, report["missing"])
        return False
    row["version"] = report["version"]
    if report["note"]:
        row["title"] = f"{contender.title}, {report['note']}"
    row.setdefault("memory_before", report["peak_before"])
    row.setdefault("memory_once", report["peak"])
    return True


def _set_missing(row: Row, reason: str) -> None:
    row["missing"] = reason
    print(f"  {row['title']}: not run: {reason}", flush=True)


def _measure_files(rows: Sequence[Row], workers: dict[str, JsonProcess]) -> None:
    """One contender after the other, each alone: the peak of its memory is measured."""
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            worker = workers.get(row["contender"])
            if worker is None:
                continue
            path = Path(folder, "vectors")
            _add_round(row, worker, 0, do="file", path=str(path))
            path.unlink(missing_ok=True)


def _measure_rounds(
    case: Case,
    start: int,
    rows: Sequence[Row],
    workers: dict[str, JsonProcess],
    sizes: dict[str, int],
    server: ServerProcess,
) -> None:
    running = [row for row in rows if row["contender"] in workers]
    for row in running:
        _warm_up(case, row, workers[row["contender"]], sizes)
    for number in range(case.rounds):
        # Each round begins with another contender, so that none always runs after the same one.
        first = (start + number) % len(running) if running else 0
        for row in [*running[first:], *running[:first]]:
            name = row["contender"]
            before = server.counters()
            _add_round(row, workers[name], start, do="block", count=sizes.get(name, 1))
            after = server.counters()
            if "missing" not in row:
                row["rounds"][-1]["server"] = {key: after[key] - before[key] for key in after}
    if start == 0 and case.kind == "requests" and case.items >= _MIN_ITEMS_FOR_LOOP:
        for row in running:
            if row["contender"] != "sockets" and "missing" not in row:
                row["hold"] = _ask(workers[row["contender"]], do="hold")["hold"]


def _warm_up(case: Case, row: Row, worker: JsonProcess, sizes: dict[str, int]) -> None:
    """Open the connections of a new worker; in the first start also find out how much it does in a round."""
    name = row["contender"]
    try:
        if name not in sizes:
            sizes[name] = _block_size(case, worker)
        elif case.kind != "bulk":
            _ask(worker, do="block", count=case.in_flight)
    except ProcessFailedError as error:
        _set_missing(row, str(error))


def _block_size(case: Case, worker: JsonProcess) -> int:
    """How much one contender does in a round, so that a round takes about as long for each."""
    if case.whole:
        probe = _ask(worker, do="block", count=case.total)
        return max(1, int(case.seconds / probe["wall"])) * case.total
    if case.kind == "bulk":
        # A round of batches takes the server's latency in any case, so few texts say little.
        probe = _ask(worker, do="block", count=2 * _STEP)
        wanted = 2 * _STEP * case.seconds / probe["wall"]
        return max(_STEP, min(case.total, int(wanted / _STEP) * _STEP))
    minimum = case.in_flight
    probe = _ask(worker, do="block", count=minimum)
    if probe["wall"] > case.seconds:
        return minimum
    probe = _ask(worker, do="block", count=2 * minimum)
    return max(minimum, int(2 * minimum * case.seconds / max(probe["wall"], 1e-4)))


def _add_round(row: Row, worker: JsonProcess, start: int, **order: Any) -> None:
    if "missing" in row:
        return
    try:
        report = _ask(worker, **order)
    except ProcessFailedError as error:
        row["missing"] = str(error)
        return
    row["peak"] = max(row.get("peak", 0), report.pop("peak"))
    number = sum(each["start"] == start for each in row["rounds"])
    row["rounds"].append({**report, "start": start, "round": number})


def _ask(worker: JsonProcess, **order: Any) -> Row:
    """Give a worker an order and return its report.

    Raises:
        ProcessFailedError: the client failed, with its error.
    """
    report = worker.ask(**order)
    if "missing" in report:
        raise ProcessFailedError(report["missing"])
    return report


def _print_row(case: Case, row: Row) -> None:
    if row["rounds"]:
        cpu, wall = (
            statistics.median(each[measure] / each[case.counter] for each in row["rounds"]) * 1e6
            for measure in ("cpu", "wall")
        )
        print(f"  {row['title']:26} {cpu:10.1f} µs CPU  {wall:10.1f} µs wall per {case.unit}", flush=True)
