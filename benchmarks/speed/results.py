"""What was measured, kept as JSON and told as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.cases import Case, case_named

Row = dict[str, Any]
FLOOR: Final = "floor"


class Results:
    """The rows of all cases, each as `run_case` gave them."""

    def __init__(self, cases: dict[str, dict[str, Any]]) -> None:
        self.cases: Final = cases

    @classmethod
    def load(cls, path: Path | None) -> Results:
        """Those of a file, none where there is no file."""
        if path is None or not path.exists():
            return cls({})
        return cls(json.loads(path.read_text())["cases"])

    def save(self, path: Path) -> None:
        """Keep them."""
        path.write_text(json.dumps({"cases": self.cases}, indent=1) + "\n")

    def put(self, case: Case, rows: Sequence[Row], *, machine: str, seconds: float) -> None:
        """The rows of a case. Those of contenders that were not asked for this time stay."""
        fresh = {row["contender"]: row for row in rows}
        old = {row["contender"]: row for row in self.cases.get(case.name, {}).get("rows", ())}
        merged = {**old, **fresh}
        ordered = [merged[name] for name in case.contenders if name in merged]
        self.cases[case.name] = {"machine": machine, "seconds": seconds, "rows": ordered}

    def rows(self, case: str) -> Mapping[str, Row]:
        """By contender; empty for a case that was not run."""
        return {row["contender"]: row for row in self.cases.get(case, {}).get("rows", ()) if row["rounds"]}

    def value(self, case: str, contender: str, measure: str) -> float | None:
        """The median over all rounds of a measure: "cpu" or "wall" in µs per unit, None where there is none."""
        row = self.rows(case).get(contender)
        if row is None:
            return None
        return float(statistics.median(per_round(case_named(case), row, measure)))

    def ratio(self, case: str, contender: str, other: str, measure: str = "cpu") -> float | None:
        """The median over all rounds of the ratio within the round."""
        rows = self.rows(case)
        if contender not in rows or other not in rows:
            return None
        pairs = zip(
            *(per_round(case_named(case), rows[name], measure) for name in (contender, other)), strict=False
        )
        return statistics.median(one / two for one, two in pairs)

    def text(self, cases: Sequence[Case]) -> str:
        """All tables, for a terminal."""
        return "\n".join(f"\n{case.title}\n{_aligned(self.table(case))}" for case in cases)

    def table(self, case: Case) -> list[list[str]]:
        """A head and a row for each contender, as text."""
        return table_of(self, case)


def per_round(case: Case, row: Row, measure: str) -> list[float]:
    """A measure of each round, in µs per unit; of the case "start" in ms, without the bare Python."""
    if case.kind == "start":
        return [1e3 * (each[measure] - each[f"bare_{measure}"]) for each in row["rounds"]]
    return [1e6 * each[measure] / each[case.counted] for each in row["rounds"]]


def table_of(results: Results, case: Case) -> list[list[str]]:
    """See `Results.table`."""
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
        head += ["request, bytes", "answer, bytes"] if case.sizes else []
        head += [f"all {case.total:,}, s"] if case.total else []
        head += (
            ["holds the loop, ms"] if any("hold" in row for row in results.cases[case.name]["rows"]) else []
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
    served = [each["server"]["cpu"] / _units(case, each) * 1e6 for each in row["rounds"] if "server" in each]
    line = [
        name,
        _short(cpu),
        "" if floor is None else f"{floor:.2f}",
        _short(wall),
        _megabytes(row["peak"]),
        _short(statistics.median(served)) if served else "",
    ]
    line += [_bytes(row, "received"), _bytes(row, "sent")] if case.sizes else []
    line += [f"{wall * case.total / 1e6:.2f}"] if case.total else []
    line += [f"{row['hold'] * 1e3:.1f}" if "hold" in row else ""] if "holds the loop, ms" in head else []
    return line


def bytes_of(row: Row, what: str) -> float | None:
    """Bytes of a request ("received" by the server) or of an answer ("sent"), heads included, as they travelled."""
    served = [each["server"] for each in row["rounds"] if "server" in each]
    requests = sum(each["requests"] for each in served)
    return sum(each[what] for each in served) / requests if requests else None


def _bytes(row: Row, what: str) -> str:
    found = bytes_of(row, what)
    return "" if found is None else f"{found:,.0f}"


def _units(case: Case, block: Mapping[str, Any]) -> float:
    return float(block[case.counted])


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
