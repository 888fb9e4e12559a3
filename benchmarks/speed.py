"""What each client costs against the same server: CPU per request and per vector, wall time, memory, start-up.

    python -m benchmarks speed --quick
    python -m benchmarks speed --venvs /tmp/peers --json speed.json --docs docs

The first command takes half a minute and measures llmopt and bare aiohttp in three cases. The second takes a quarter of an
hour, measures all contenders in all cases and writes docs/performance.md. It needs llmopt, its OpenAI plugin and the extra
`bench`. Each contender has its own process, all traffic is on loopback, and rounds alternate between contenders. With
--json a run can be continued: the cases that are measured replace those in the file, the others stay.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import CONTENDERS, Contender, contender_named
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
from benchmarks.speed_cases import CASES, Case
from benchmarks.speed_results import Results

_QUICK_CASES: Final = ("one-64", "large", "numbers-512")
_QUICK_CONTENDERS: Final = ("floor", "llmopt", "llmopt-off")
_MIN_ITEMS_FOR_LOOP: Final = 128
"""Texts per request from which on it is measured how long the event loop is blocked."""
_STEP: Final = 4_096
_MAX_SLOWNESS: Final = 4.0
"""A contender whose block takes this many times longer than intended is measured in two rounds only."""

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    cases = [case.name for case in CASES]
    names = [each.name for each in CONTENDERS]
    parser.add_argument(
        "--quick", action="store_true", help="half a minute: llmopt and aiohttp in three cases"
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=cases,
        metavar="NAME",
        help=f"one case, may be repeated: {', '.join(cases)}",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one contender, may be repeated: {', '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, help="number of rounds, instead of the number of each case")
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
    environments = Environments.from_arguments(arguments)
    results = Results.load(arguments.json)
    for case in CASES:
        if _selected(case, arguments):
            _measure(case, arguments, environments, results)
            if arguments.json is not None:
                results.save(arguments.json)
    print(results.text([case for case in CASES if case.name in results.cases]))
    if arguments.docs is not None:
        from benchmarks.speed_pages import write_pages

        write_pages(results, arguments.docs)


def _selected(case: Case, arguments: argparse.Namespace) -> bool:
    if arguments.render:
        return False
    if arguments.case:
        return case.name in arguments.case
    return not arguments.quick or case.name in _QUICK_CASES


def _measure(case: Case, arguments: argparse.Namespace, environments: Environments, results: Results) -> None:
    names = [name for name in case.contenders if not arguments.contender or name in arguments.contender]
    if arguments.quick and not arguments.contender:
        names = [name for name in names if name in _QUICK_CONTENDERS]
    contenders = [contender_named(name, CONTENDERS) for name in names]
    rounds = arguments.rounds or case.rounds
    print(case.title, flush=True)
    started = time.monotonic()
    if case.kind == "start":
        rows = measure_start(contenders, environments, rounds)
    else:
        rows = measure_case(case, contenders, environments, rounds)
    results.put(case, rows, machine=machine(), seconds=time.monotonic() - started)


# ---- cases with a server


def measure_case(
    case: Case, contenders: Sequence[Contender], environments: Environments, rounds: int
) -> list[Row]:
    """Return a row for each contender, with all measurements, or with the reason why it could not take part."""
    with ServerProcess("embeddings", environments.python("server")) as server:
        rows, workers = [], {}
        for contender in contenders:
            row: Row = {"contender": contender.name, "title": contender.title, "rounds": []}
            rows.append(row)
            worker = _start_worker(contender, case, environments, server, row)
            if worker is not None:
                workers[contender.name] = worker
        try:
            if case.kind == "stored":
                _measure_files(case, rows, workers)
            else:
                _measure_rounds(case, rows, workers, server, rounds)
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def _start_worker(
    contender: Contender, case: Case, environments: Environments, server: ServerProcess, row: Row
) -> JsonProcess | None:
    python = environments.python(contender.environment)
    failure = environments.failure(contender.environment)
    if failure is None:
        task = {
            "benchmark": "speed",
            "contender": contender.name,
            "case": case.name,
            "origin": server.origin,
        }
        checkout = contender.environment == CHECKOUT
        worker = JsonProcess(python, task, child_environment(checkout=checkout))
        report: Row = {}
        try:
            report = worker.receive(START_TIMEOUT_S)
            failure = report.get("missing")
        except ProcessFailedError as error:
            failure = str(error)
        if failure is None:
            row["version"] = report["version"]
            if report["note"]:
                row["title"] = f"{contender.title}, {report['note']}"
            row["memory_before"], row["memory_once"] = report["peak_before"], report["peak"]
            return worker
        worker.close()
    row["missing"] = failure
    print(f"  {contender.title}: not run: {failure}", flush=True)
    return None


def _measure_files(case: Case, rows: Sequence[Row], workers: dict[str, JsonProcess]) -> None:
    """One contender after the other, each alone: the peak of its memory is measured."""
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            worker = workers.get(row["contender"])
            if worker is None:
                continue
            path = Path(folder, "vectors")
            _add_round(row, worker, do="file", path=str(path))
            path.unlink(missing_ok=True)
            _print_row(case, row)


def _measure_rounds(
    case: Case, rows: Sequence[Row], workers: dict[str, JsonProcess], server: ServerProcess, rounds: int
) -> None:
    sizes = {name: _block_size(case, worker) for name, worker in workers.items()}
    running = [row for row in rows if row["contender"] in workers]
    for number in range(rounds):
        # Each round begins with another contender, so that none always runs after the same one.
        first = number % len(running) if running else 0
        for row in [*running[first:], *running[:first]]:
            name = row["contender"]
            if number >= 2 and row["rounds"] and row["rounds"][-1]["wall"] > _MAX_SLOWNESS * case.seconds:
                continue
            before = server.counters()
            _add_round(row, workers[name], do="block", count=sizes[name])
            after = server.counters()
            if row["rounds"] and "missing" not in row:
                row["rounds"][-1]["server"] = {key: after[key] - before[key] for key in after}
    for row in running:
        if (
            case.kind == "requests"
            and case.items >= _MIN_ITEMS_FOR_LOOP
            and row["contender"] != "sockets"
            and "missing" not in row
        ):
            row["hold"] = workers[row["contender"]].ask(do="hold")["hold"]
        _print_row(case, row)


def _block_size(case: Case, worker: JsonProcess) -> int:
    """How much one contender does in a round, so that a round takes about as long for each."""
    if case.kind == "bulk":
        # A round of batches takes the server's latency in any case, so few texts say little.
        probe = worker.ask(do="block", count=2 * _STEP)
        wanted = 2 * _STEP * case.seconds / probe["wall"]
        return max(_STEP, min(case.total, int(wanted / _STEP) * _STEP))
    minimum = 1 if case.items > 1 else case.in_flight
    probe = worker.ask(do="block", count=minimum)
    if probe["wall"] > case.seconds:
        return minimum
    probe = worker.ask(do="block", count=2 * minimum)
    return max(minimum, int(2 * minimum * case.seconds / max(probe["wall"], 1e-4)))


def _add_round(row: Row, worker: JsonProcess, **order: Any) -> None:
    if "missing" in row:
        return
    try:
        report = worker.ask(**order)
    except ProcessFailedError as error:
        row["missing"] = str(error)
        return
    row["peak"] = report.pop("peak")
    row["rounds"].append(report)


def _print_row(case: Case, row: Row) -> None:
    if row["rounds"]:
        cpu, wall = (
            statistics.median(each[measure] / each[case.counter] for each in row["rounds"]) * 1e6
            for measure in ("cpu", "wall")
        )
        print(f"  {row['title']:26} {cpu:10.1f} µs CPU  {wall:10.1f} µs wall per {case.unit}", flush=True)


# ---- the case "start": import a package and create a client, in new processes


def measure_start(contenders: Sequence[Contender], environments: Environments, rounds: int) -> list[Row]:
    """Return a row for each contender: its process, and a bare Python in the same environment just before it."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        _install_plugins(Path(folder), max((each.plugins for each in contenders), default=0))
        for contender in contenders:
            row: Row = {"contender": contender.name, "title": contender.title, "rounds": []}
            rows.append(row)
            failure = environments.failure(contender.environment) or _measure_start_once(
                contender, environments, folder, row=None
            )
            if failure is not None:
                row["missing"] = failure
                print(f"  {contender.title}: not run: {failure}", flush=True)
        for _ in range(rounds):
            for contender, row in zip(contenders, rows, strict=True):
                if "missing" not in row:
                    _measure_start_once(contender, environments, folder, row)
    return rows


def _measure_start_once(
    contender: Contender, environments: Environments, folder: str, row: Row | None
) -> str | None:
    """Measure both processes; returns the reason of a failure. Without a row it only checks that they run."""
    python = environments.python(contender.environment)
    folders = (folder,) if contender.plugins else ()
    environment = child_environment(checkout=contender.environment == CHECKOUT, folders=folders)
    bare = _measure_process([python, "-c", "pass"], environment)
    full = _measure_process([python, "-c", contender.program or "pass"], environment)
    if full.get("missing"):
        return str(full["missing"])
    if row is not None:
        row["peak"] = max(row.get("peak", 0), full["peak"])
        row["rounds"].append({**full, "bare_cpu": bare["cpu"], "bare_wall": bare["wall"]})
    return None


def _measure_process(command: Sequence[str], environment: dict[str, str]) -> Row:
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stderr=errors, cwd=tempfile.gettempdir())
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            return {"missing": errors.read().decode(errors="replace").strip().splitlines()[-1][:200]}
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "peak": usage.ru_maxrss * 1024}


def _install_plugins(folder: Path, count: int) -> None:
    """Write plugins as pip installs them; importing one of them fails."""
    for number in range(count):
        name = f"unused_{number:02d}"
        (folder / f"{name}.py").write_text("raise RuntimeError('this plugin must not be imported')\n")
        data = folder / f"{name}-1.0.dist-info"
        data.mkdir()
        (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (data / "entry_points.txt").write_text(f"[llmopt]\nunused{number:02d} = {name}\n")
