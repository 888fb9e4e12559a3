"""The tables and plots in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.speed.cases import CASES
from benchmarks.speed.plots import draw
from benchmarks.speed.reach import reach_table
from benchmarks.speed.results import Results

BEGIN: Final = "<!-- {}: written by benchmarks/speed -->"
END: Final = "<!-- end of {} -->"


def write_pages(results: Results, folder: Path) -> None:
    """Put tables into performance.md, between its marks, and plots into the folder beside it."""
    page = folder / "performance.md"
    drawn = draw(results, folder / "performance")
    text = (
        page.read_text()
        if page.exists()
        else "".join(f"{BEGIN.format(name)}\n{END.format(name)}\n" for name in ("reach", "cases"))
    )
    text = _placed(text, "reach", markdown(reach_table(results)))
    page.write_text(_placed(text, "cases", _cases(results, drawn)))


def _placed(page: str, name: str, text: str) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in page or end not in page:
        raise SystemExit(f"the page has no place for {name}: write {begin} and {end}")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}"


def _cases(results: Results, drawn: Sequence[str]) -> str:
    parts = []
    for case in CASES:
        if case.name not in results.cases:
            continue
        plot = f"![{case.title}](performance/{case.name}.svg)\n\n" if case.name in drawn else ""
        parts.append(f"### {case.title}\n\n{plot}{markdown(results.table(case))}\n")
    machines = {results.cases[case.name]["machine"] for case in CASES if case.name in results.cases}
    return f"Measured on: {'; '.join(sorted(machines))}.\n\n{''.join(parts)}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    head, *rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
