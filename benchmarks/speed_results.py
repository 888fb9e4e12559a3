"""Results of the speed benchmark: stored as JSON, and shown as tables.

A worker is started several times in a case. Two contenders are compared within a round, the median over the rounds of a
start is the result of that start, and the median over the starts is the result; its spread is that over the starts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.speed_cases import CASES, CURVES, Case, Curve, case_named
from benchmarks.tables import aligned

Row = dict[str, Any]
FLOOR: Final = "floor"


@dataclass(frozen=True)
class Measured:
    """A result: the median over process starts, the smallest and the largest of them, and their number."""

    median: float
    low: float
    high: float
    starts: int

    @classmethod
    def over(cls, starts: Sequence[float]) -> Measured:
        """Summarize the results of the starts."""
        return cls(float(statistics.median(starts)), min(starts), max(starts), len(starts))

    def scaled(self, factor: float) -> Measured:
        """Return the same in another unit."""
        return Measured(self.median * factor, self.low * factor, self.high * factor, self.starts)


class Results:
    """The rows of all cases, as `benchmarks.speed.measure_case` returns them."""

    def __init__(self, cases: dict[str, dict[str, Any]]) -> None:
        self.cases: Final = cases

    @classmethod
    def load(cls, path: Path | None) -> Results:
        """Read a file; no results if there is none."""
        if path is None or not path.exists():
            return cls({})
        return cls(json.loads(path.read_text())["cases"])

    def save(self, path: Path) -> None:
        """Write a file."""
        path.write_text(json.dumps({"cases": self.cases}, indent=1) + "\n")

    def put(self, case: Case, rows: Sequence[Row], *, machine: str, seconds: float) -> None:
        """Store the rows of a case. Rows of contenders that were not measured this time stay."""
        stored = self.cases.setdefault(case.name, {"instructions": {}})
        new = {row["contender"]: row for row in rows}
        old = {row["contender"]: row for row in stored.get("rows", ())}
        merged = {**old, **new}
        ordered = [merged[name] for name in case.contenders if name in merged]
        stored.update(machine=machine, seconds=seconds, rows=ordered)

    def put_instructions(self, case: Case, contender: str, instructions: int | None) -> None:
        """Store the instructions of a request."""
        stored = self.cases.setdefault(case.name, {"instructions": {}, "rows": []})
        if instructions is not None:
            stored["instructions"][contender] = instructions

    def instructions(self, case: str, contender: str) -> int | None:
        """Return the user instructions of a request, None if they were not counted."""
        counted: int | None = self.cases.get(case, {}).get("instructions", {}).get(contender)
        return counted

    def rows(self, case: str) -> Mapping[str, Row]:
        """Return the measured rows of a case by contender; empty for a case that was not run."""
        return {row["contender"]: row for row in self.cases.get(case, {}).get("rows", ()) if row["rounds"]}

    def listed(self, case: str, name: str) -> Measured | None:
        """Return a value of a case that measures several, such as "service"; None if it was not run."""
        rows = self.cases.get(case, {}).get("rows", ())
        values = rows[0].get("values", {}).get(name) if rows else None
        return Measured.over(values) if values else None

    def value(self, case: str, contender: str, measure: str) -> Measured | None:
        """Return "cpu" or "wall" in µs per unit; None if it was not measured."""
        return self.compared(case, contender, contender, measure, lambda one, _: one)

    def ratio(self, case: str, contender: str, other: str, measure: str = "cpu") -> Measured | None:
        """Return the ratio within a round."""
        return self.compared(case, contender, other, measure, lambda one, two: one / two)

    def compared(
        self, case: str, contender: str, other: str, measure: str, compare: Callable[[float, float], float]
    ) -> Measured | None:
        """Compare two contenders round by round; None if there is no round with both."""
        rows = self.rows(case)
        if contender not in rows or other not in rows:
            return None
        one, two = (per_round(case_named(case), rows[name], measure) for name in (contender, other))
        starts: dict[int, list[float]] = {}
        for key in sorted(one.keys() & two.keys()):
            starts.setdefault(key[0], []).append(compare(one[key], two[key]))
        return Measured.over([statistics.median(each) for each in starts.values()]) if starts else None

    def text(self) -> str:
        """Return all tables for a terminal."""
        tables = [(case.title, self.table(case)) for case in CASES if self.has_table(case)]
        tables += [(curve.title, curve_table(self, curve)) for curve in self.curves()]
        return "\n".join(f"\n{title}\n{aligned(table)}" for title, table in tables)

    def has_table(self, case: Case) -> bool:
        """Whether a case was measured and has a table of its own."""
        return case.name in self.cases and case.kind not in ("walk", "service")

    def curves(self) -> list[Curve]:
        """Return the curves of which at least two points were measured."""
        return [curve for curve in CURVES if len(curve_table(self, curve)) > 2]

    def table(self, case: Case) -> list[list[str]]:
        """Return a head and a row for each contender."""
        return _table(self, case)


Key = tuple[int, int]
"""A start, and a round of it."""


def per_round(case: Case, row: Row, measure: str) -> dict[Key, float]:
    """Return a measure for each round, in µs per unit; in the cases of starting in ms, without those of a bare Python."""
    if case.kind in ("start", "first"):
        values = [1e3 * (each[measure] - each.get(f"bare_{measure}", 0.0)) for each in row["rounds"]]
    else:
        values = [1e6 * each[measure] / each[case.counter] for each in row["rounds"]]
    keys = [(each["start"], each["round"]) for each in row["rounds"]]
    return dict(zip(keys, values, strict=True))


_TURNS: Final = "turns of the loop per request"
_SPREAD: Final = "spread"
"""The smallest and the largest ratio to the floor over the starts."""


def _table(results: Results, case: Case) -> list[list[str]]:
    stored = results.cases[case.name]
    if case.kind == "start":
        head = ["", "CPU, ms", "wall, ms", "memory, MB"]
    elif case.kind == "first":
        head = ["", "CPU of the first request, ms", "CPU of the client, ms", "wall of both, ms"]
    else:
        unit = case.unit
        head = ["", f"CPU per {unit}, µs", "x floor", _SPREAD, f"wall per {unit}, µs", "memory, MB"]
        head += ["server, µs of CPU"] if case.kind != "stream" else []
        head += [_TURNS] if any("turns" in each for row in stored["rows"] for each in row["rounds"]) else []
        head += ["request, bytes", "response, bytes"] if case.sizes else []
        head += [f"all {case.total:,}, s"] if case.total else []
        head += ["blocks the loop, ms"] if any("hold" in row for row in stored["rows"]) else []
        head += ["instructions, k"] if stored["instructions"] else []
    rows = stored["rows"] or [
        {"contender": name, "title": name, "rounds": [], "missing": "only counted"}
        for name in stored["instructions"]
    ]
    return [head, *(_line(results, case, row, head) for row in rows)]


def _line(results: Results, case: Case, row: Row, head: Sequence[str]) -> list[str]:
    name = f"{row['title']} {row['version']}" if row.get("version") else row["title"]
    counted = results.instructions(case.name, row["contender"])
    instructions = "" if counted is None else f"{counted / 1e3:,.0f}"
    if not row["rounds"]:
        line = [name, f"not run: {row.get('missing')}", *[""] * (len(head) - 2)]
        return [*line[:-1], instructions] if counted is not None else line
    cpu, wall = (results.value(case.name, row["contender"], measure) for measure in ("cpu", "wall"))
    assert cpu is not None
    assert wall is not None
    if case.kind == "start":
        return [name, f"{cpu.median:.1f}", f"{wall.median:.1f}", _megabytes(row["peak"])]
    if case.kind == "first":
        made = 1e3 * statistics.median(each["client_cpu"] for each in row["rounds"])
        return [name, f"{cpu.median:.1f}", f"{made:.1f}", f"{wall.median:.1f}"]
    floor = results.ratio(case.name, row["contender"], FLOOR)
    line = [
        name,
        _short(cpu.median),
        "" if floor is None else f"{floor.median:.2f}",
        "" if floor is None or row["contender"] == FLOOR else spread(floor, 1),
        _short(wall.median),
        _megabytes(row["peak"]),
    ]
    line += [_server_cpu(case, row)] if case.kind != "stream" else []
    line += [_turns(row)] if _TURNS in head else []
    line += [_bytes(row, "received"), _bytes(row, "sent")] if case.sizes else []
    line += [f"{wall.median * case.total / 1e6:.2f}"] if case.total else []
    line += [f"{row['hold'] * 1e3:.1f}" if "hold" in row else ""] if "blocks the loop, ms" in head else []
    line += [instructions] if head[-1] == "instructions, k" else []
    return line


def spread(measured: Measured, factor: float) -> str:
    """Return the smallest and the largest of the starts, "" for one start."""
    if measured.starts < 2:
        return ""
    low, high = measured.low * factor, measured.high * factor
    digits = 2 if high < 9.95 else 1 if high < 99.5 else 0
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _turns(row: Row) -> str:
    turns = [each["turns"] / each["requests"] for each in row["rounds"] if "turns" in each]
    return f"{statistics.median(turns):.2f}" if turns else ""


def _server_cpu(case: Case, row: Row) -> str:
    used = [each["server"]["cpu"] / each[case.counter] * 1e6 for each in row["rounds"] if each.get("server")]
    return _short(statistics.median(used)) if used else ""


def bytes_per_request(row: Row, direction: str) -> float | None:
    """Return the bytes of a request ("received" by the server) or of a response ("sent"), with its head."""
    server = [each["server"] for each in row["rounds"] if each.get("server")]
    requests = sum(each["requests"] for each in server)
    return sum(each[direction] for each in server) / requests if requests else None


def _bytes(row: Row, direction: str) -> str:
    size = bytes_per_request(row, direction)
    return "" if size is None else f"{size:,.0f}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


# ---- curves


def curve_points(results: Results, curve: Curve) -> dict[str, dict[int, Measured]]:
    """Return the measured points of each line: CPU in µs per unit by the number that grows."""
    lines: dict[str, dict[int, Measured]] = {}
    for title, points in curve.lines.items():
        measured = {x: results.value(case, contender, "cpu") for x, case, contender in points}
        lines[title] = {x: value for x, value in measured.items() if value is not None}
    return lines


def curve_table(results: Results, curve: Curve) -> list[list[str]]:
    """Return a head and a row for each number that was measured, with the memory of llmopt."""
    lines = curve_points(results, curve)
    head = [curve.x, *(f"{title}, µs of CPU per {curve.unit}" for title in lines), "memory of llmopt, MB"]
    table = [head]
    for x in sorted({x for points in lines.values() for x in points}):
        cells = [_short(points[x].median) if x in points else "" for points in lines.values()]
        table.append([f"{x:,}", *cells, _curve_memory(results, curve, x)])
    return table


def _curve_memory(results: Results, curve: Curve, x: int) -> str:
    first, *_ = curve.lines.values()
    case, contender = next((case, contender) for each, case, contender in first if each == x)
    row = results.rows(case).get(contender)
    return "" if row is None else _megabytes(row["peak"])
