"""One case: its contenders take turns, round after round, at the same server."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import Contender
from benchmarks.speed.environments import CHECKOUT, Environments
from benchmarks.speed.processes import Server, SilentError, Worker

Row = dict[str, Any]
_HOLDING_ITEMS: Final = 128
_STEP: Final = 4_096
_SLOW: Final = 4.0
"""Times the time it should take: whoever's block takes longer is measured in two rounds only."""


def run_case(
    case: Case, contenders: Sequence[Contender], environments: Environments, rounds: int
) -> list[Row]:
    """The rows of a case, with everything that was measured; of who could not take part, why."""
    with Server(environments.python("server")) as server:
        rows, workers = [], {}
        for contender in contenders:
            row: Row = {"contender": contender.name, "title": contender.title, "rounds": []}
            rows.append(row)
            worker = _started(contender, case, environments, server, row)
            if worker is not None:
                workers[contender.name] = worker
        try:
            if case.kind == "stored":
                _store(case, rows, workers)
            else:
                _take_turns(case, rows, workers, server, rounds)
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def _started(
    contender: Contender, case: Case, environments: Environments, server: Server, row: Row
) -> Worker | None:
    python = environments.python(contender.environment)
    failure = environments.failure(contender.environment)
    if failure is None:
        try:
            checkout = contender.environment == CHECKOUT
            worker = Worker(python, contender.name, case.name, server.origin, checkout=checkout)
        except SilentError as error:
            failure = str(error)
        else:
            failure = worker.first.get("missing")
            if failure is None:
                row["version"] = worker.first["version"]
                if worker.first["note"]:
                    row["title"] = f"{contender.title}, {worker.first['note']}"
                row["memory_before"], row["memory_once"] = worker.first["peak_before"], worker.first["peak"]
                return worker
            worker.close()
    row["missing"] = failure
    print(f"  {contender.title}: not run: {failure}", flush=True)
    return None


def _store(case: Case, rows: Sequence[Row], workers: dict[str, Worker]) -> None:
    """One after the other, each alone: its peak is what is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            worker = workers.get(row["contender"])
            if worker is None:
                continue
            path = Path(folder, "vectors")
            _note(row, worker, do="stored", path=str(path))
            path.unlink(missing_ok=True)
            _tell(case, row)


def _take_turns(
    case: Case, rows: Sequence[Row], workers: dict[str, Worker], server: Server, rounds: int
) -> None:
    sizes = {name: _size(case, worker) for name, worker in workers.items()}
    running = [row for row in rows if row["contender"] in workers]
    for number in range(rounds):
        # Another one begins each time, so that nobody always comes after the same neighbour.
        turn = number % len(running) if running else 0
        for row in [*running[turn:], *running[:turn]]:
            name = row["contender"]
            if number >= 2 and row["rounds"] and row["rounds"][-1]["wall"] > _SLOW * case.seconds:
                continue
            before = server.counters()
            _note(row, workers[name], do="block", count=sizes[name])
            after = server.counters()
            if row["rounds"] and "missing" not in row:
                row["rounds"][-1]["server"] = {key: after[key] - before[key] for key in after}
    for row in running:
        if case.kind == "requests" and case.items >= _HOLDING_ITEMS and row["contender"] != "sockets":
            row["hold"] = workers[row["contender"]].ask(do="hold")["hold"]
        _tell(case, row)


def _size(case: Case, worker: Worker) -> int:
    """How much one contender does in a block, so that a block takes about as long for each."""
    if case.kind == "bulk":
        # A round of batches takes the server's delay whatever comes of it, so few texts tell little.
        probe = worker.ask(do="block", count=2 * _STEP)
        wanted = 2 * _STEP * case.seconds / probe["wall"]
        return max(_STEP, min(case.total, int(wanted / _STEP) * _STEP))
    least = 1 if case.items > 1 else case.in_flight
    probe = worker.ask(do="block", count=least)
    if probe["wall"] > case.seconds:
        return least
    probe = worker.ask(do="block", count=2 * least)
    return max(least, int(2 * least * case.seconds / max(probe["wall"], 1e-4)))


def _note(row: Row, worker: Worker, **order: Any) -> None:
    if "missing" in row:
        return
    try:
        report = worker.ask(**order)
    except SilentError as error:
        row["missing"] = str(error)
        return
    row["peak"] = report.pop("peak")
    row["rounds"].append(report)


def _tell(case: Case, row: Row) -> None:
    if row["rounds"]:
        cost = statistics.median(each["cpu"] / each[case.counted] for each in row["rounds"]) * 1e6
        wall = statistics.median(each["wall"] / each[case.counted] for each in row["rounds"]) * 1e6
        print(f"  {row['title']:24} {cost:10.1f} µs CPU  {wall:10.1f} µs wall per {case.unit}", flush=True)
