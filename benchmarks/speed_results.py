"""Results of the speed benchmark: stored as JSON, shown as tables, and compared with the targets."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.speed_cases import Case, case_named
from benchmarks.tables import aligned

Row = dict[str, Any]
FLOOR: Final = "floor"


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
        new = {row["contender"]: row for row in rows}
        old = {row["contender"]: row for row in self.cases.get(case.name, {}).get("rows", ())}
        merged = {**old, **new}
        ordered = [merged[name] for name in case.contenders if name in merged]
        self.cases[case.name] = {"machine": machine, "seconds": seconds, "rows": ordered}

    def rows(self, case: str) -> Mapping[str, Row]:
        """Return the measured rows of a case by contender; empty for a case that was not run."""
        return {row["contender"]: row for row in self.cases.get(case, {}).get("rows", ()) if row["rounds"]}

    def value(self, case: str, contender: str, measure: str) -> float | None:
        """Return the median of "cpu" or "wall" over all rounds, in µs per unit; None if it was not measured."""
        row = self.rows(case).get(contender)
        if row is None:
            return None
        return float(statistics.median(per_round(case_named(case), row, measure)))

    def ratio(self, case: str, contender: str, other: str, measure: str = "cpu") -> float | None:
        """Return the median over all rounds of the ratio within a round."""
        rows = self.rows(case)
        if contender not in rows or other not in rows:
            return None
        pairs = zip(
            *(per_round(case_named(case), rows[name], measure) for name in (contender, other)), strict=False
        )
        return float(statistics.median(one / two for one, two in pairs))

    def text(self, cases: Sequence[Case]) -> str:
        """Return all tables for a terminal."""
        return "\n".join(f"\n{case.title}\n{aligned(self.table(case))}" for case in cases)

    def table(self, case: Case) -> list[list[str]]:
        """Return a head and a row for each contender."""
        return _table(self, case)


def per_round(case: Case, row: Row, measure: str) -> list[float]:
    """Return a measure for each round, in µs per unit; in the case "start" in ms, without those of a bare Python."""
    if case.kind == "start":
        return [1e3 * (each[measure] - each[f"bare_{measure}"]) for each in row["rounds"]]
    return [1e6 * each[measure] / each[case.counter] for each in row["rounds"]]


def _table(results: Results, case: Case) -> list[list[str]]:
    if case.kind == "start":
        head = ["", "CPU, ms", "wall, ms", "memory, MB"]
    else:
        unit = case.unit
        head = [
            "",
            f"CPU per {unit}, µs",
            "x floor",
            f"wall per {unit}, µs",
            "memory, MB",
            "server, µs of CPU",
        ]
        head += ["request, bytes", "response, bytes"] if case.sizes else []
        head += [f"all {case.total:,}, s"] if case.total else []
        head += (
            ["blocks the loop, ms"] if any("hold" in row for row in results.cases[case.name]["rows"]) else []
        )
    lines = [_line(results, case, row, head) for row in results.cases[case.name]["rows"]]
    return [head, *lines]


def _line(results: Results, case: Case, row: Row, head: Sequence[str]) -> list[str]:
    name = f"{row['title']} {row['version']}" if row.get("version") else row["title"]
    if not row["rounds"]:
        return [name, f"not run: {row.get('missing')}", *[""] * (len(head) - 2)]
    cpu, wall = (statistics.median(per_round(case, row, measure)) for measure in ("cpu", "wall"))
    if case.kind == "start":
        return [name, f"{cpu:.1f}", f"{wall:.1f}", _megabytes(row["peak"])]
    floor = results.ratio(case.name, row["contender"], FLOOR)
    server = [each["server"]["cpu"] / each[case.counter] * 1e6 for each in row["rounds"] if "server" in each]
    line = [
        name,
        _short(cpu),
        "" if floor is None else f"{floor:.2f}",
        _short(wall),
        _megabytes(row["peak"]),
        _short(statistics.median(server)) if server else "",
    ]
    line += [_bytes(row, "received"), _bytes(row, "sent")] if case.sizes else []
    line += [f"{wall * case.total / 1e6:.2f}"] if case.total else []
    line += [f"{row['hold'] * 1e3:.1f}" if "hold" in row else ""] if "blocks the loop, ms" in head else []
    return line


def bytes_per_request(row: Row, direction: str) -> float | None:
    """Return the bytes of a request ("received" by the server) or of a response ("sent"), with its head."""
    server = [each["server"] for each in row["rounds"] if "server" in each]
    requests = sum(each["requests"] for each in server)
    return sum(each[direction] for each in server) / requests if requests else None


def _bytes(row: Row, direction: str) -> str:
    size = bytes_per_request(row, direction)
    return "" if size is None else f"{size:,.0f}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


# ---- targets

Measure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """A value that llmopt should reach.

    Attributes:
        title: the case and the comparison.
        limit: the maximum, None for a value without a limit.
        unit: unit of the numbers.
        measure: returns the measured value, None if it was not measured.
        goal: a better value than the maximum, None for none.
    """

    title: str
    limit: float | None
    unit: str
    measure: Measure
    goal: float | None = None


def _ratio(case: str, other: str, *, measure: str = "cpu") -> Measure:
    return lambda results: results.ratio(case, "llmopt", other, measure)


def _best_ratio(case: str, others: Sequence[str], *, measure: str) -> Measure:
    """Compare with the better of several ways to use the same client."""

    def measured(results: Results) -> float | None:
        ratios = [results.ratio(case, "llmopt", other, measure) for other in others]
        known = [each for each in ratios if each is not None]
        return max(known) if known else None

    return measured


def _without_latency(case_name: str, others: Sequence[str]) -> Measure:
    """Like `_best_ratio` of wall time, without the latency of the server at that concurrency."""
    case = case_named(case_name)
    rounds = math.ceil(case.total / case.items / case.in_flight)
    latency = rounds * case.delay_ms * 1e3 / case.total

    def measured(results: Results) -> float | None:
        walls = [results.value(case_name, name, "wall") for name in ("llmopt", *others)]
        own, *others_walls = [None if wall is None else wall - latency for wall in walls]
        known = [each for each in others_walls if each is not None]
        return None if own is None or not known else own / min(known)

    return measured


def _added_by_sync(results: Results) -> float | None:
    both = [results.value("sync", name, "cpu") for name in ("llmopt", "llmopt-async")]
    return both[0] - both[1] if both[0] is not None and both[1] is not None else None


def _catalogue_ms(results: Results) -> float | None:
    cost = results.value("catalogue", "llmopt", "cpu")
    return None if cost is None else cost * 1000 / 1e3


def _catalogue_mb(results: Results) -> float | None:
    row = results.rows("catalogue").get("llmopt")
    # For one list: in the rounds the lists before it are still being written to the cache.
    return None if row is None else (row["memory_once"] - row["memory_before"]) / 1e6


def _start(one: str, other: str, *, ratio: bool) -> Measure:
    def measured(results: Results) -> float | None:
        first, second = (results.value("start", name, "cpu") for name in (one, other))
        if first is None or second is None:
            return None
        return first / second if ratio else first - second

    return measured


def _bytes_ratio(case: str, one: str, other: str, direction: str) -> Measure:
    def measured(results: Results) -> float | None:
        rows = results.rows(case)
        first, second = (
            bytes_per_request(rows[name], direction) if name in rows else None for name in (one, other)
        )
        return first / second if first and second else None

    return measured


def _blocked_loop_ms(case: str) -> Measure:
    def measured(results: Results) -> float | None:
        seconds = results.rows(case).get("llmopt", {}).get("hold")
        return None if seconds is None else seconds * 1e3

    return measured


def _memory(results: Results) -> float | None:
    row = results.rows("memory").get("llmopt")
    return None if row is None else row["peak"] / 1e6


_BASETEN = ("baseten", "baseten-base64")

TARGETS: Sequence[Target] = (
    Target("one text per request, 64 in flight, over bare aiohttp", 1.8, "x", _ratio("one-64", "floor"), 1.4),
    Target("the same, against openai", 1 / 12, "x", _ratio("one-64", "openai"), 1 / 18),
    Target("the same, against litellm's Router", 1 / 15, "x", _ratio("one-64", "router"), 1 / 22),
    Target("512 in flight, over bare aiohttp", 1.8, "x", _ratio("one-512", "floor")),
    Target("2,048 x 1,536 base64, over bare aiohttp", 1.25, "x", _ratio("large", "floor"), 1.1),
    Target("the same, against openai", 1 / 7, "x", _ratio("large", "openai")),
    Target("the same, the loop is blocked", 20, "ms", _blocked_loop_ms("large")),
    Target("2,048 x 1,536 JSON numbers, the loop is blocked", 20, "ms", _blocked_loop_ms("numbers-2048")),
    Target("512 x 384 JSON numbers, against Baseten", 1 / 3, "x", _ratio("numbers-512", "baseten")),
    Target("the same, against openai", 1 / 15, "x", _ratio("numbers-512", "openai")),
    Target(
        "131,072 texts x 384, wall, against Baseten",
        1 / 2,
        "x",
        _best_ratio("many-384", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "x", _ratio("many-384", "openai", measure="wall")),
    Target(
        "the same, without the server's latency of 1.6 s",
        None,
        "x",
        _without_latency("many-384", ("openai",)),
    ),
    Target("and against Baseten", None, "x", _without_latency("many-384", _BASETEN)),
    Target(
        "131,072 texts x 1,536, wall, against Baseten",
        1 / 2,
        "x",
        _best_ratio("many-1536", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "x", _ratio("many-1536", "openai", measure="wall")),
    Target(
        "the same, without the server's latency of 1.6 s",
        None,
        "x",
        _without_latency("many-1536", ("openai",)),
    ),
    Target("and against Baseten", None, "x", _without_latency("many-1536", _BASETEN)),
    Target("synchronous client, added to the asynchronous one", 120, "µs CPU", _added_by_sync),
    Target("catalogue of 5,000 models, per 1,000", 10, "ms CPU", _catalogue_ms),
    Target("the same, memory above the start, for one list", 50, "MB", _catalogue_mb),
    Target(
        "bytes of its response, compressed over uncompressed",
        1 / 2,
        "x",
        _bytes_ratio("catalogue", "llmopt", "llmopt-plain", "sent"),
    ),
    Target(
        "bytes of a request with 128 passages, compressed over uncompressed",
        1 / 2,
        "x",
        _bytes_ratio("compressed", "llmopt-compressed", "llmopt", "received"),
    ),
    Target(
        "`import llmopt; llmopt.AsyncClient()`, against `import httpx`",
        1,
        "x",
        _start("llmopt", "httpx", ratio=True),
    ),
    Target("20 unused plugins", 10, "ms CPU", _start("llmopt-plugins", "llmopt-provider", ratio=False)),
    Target("131,072 x 1,536 into a file, peak memory", 300, "MB", _memory),
)


def targets_table(results: Results) -> list[list[str]]:
    """Return a head, and a row for each target that was measured."""
    lines = [["", "at most", "goal", "measured", ""]]
    for target in TARGETS:
        measured = target.measure(results)
        if measured is not None:
            goal = "" if target.goal is None else _with_unit(target.goal, target.unit)
            limit, reached = "", ""
            if target.limit is not None:
                limit = _with_unit(target.limit, target.unit)
                reached = "yes" if measured <= target.limit else "**no**"
            lines.append([target.title, limit, goal, _with_unit(measured, target.unit), reached])
    return lines


def _with_unit(number: float, unit: str) -> str:
    if unit == "x" and number < 0.9:
        return f"1/{1 / number:.1f}".removesuffix(".0")
    digits = 2 if number < 9.95 else 1 if number < 20 else 0
    return f"{number:.{digits}f} {unit}"
