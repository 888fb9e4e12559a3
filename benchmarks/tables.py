"""Tables as text and as Markdown, and Markdown pages with a generated part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Table = Sequence[Sequence[str]]
"""A head and rows, all of the same length."""


def aligned(table: Table) -> str:
    """Return a table for a terminal: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(table: Table, *, numbers: bool = True) -> str:
    """Return a table in Markdown; ``numbers``: whether all columns but the first are aligned to the right."""
    head, *rows = table
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *rows])


def replace_part(path: Path, name: str, command: str, text: str) -> None:
    """Replace the text between the two marks of a page; the marks are appended to a page without them."""
    begin = f"<!-- {name}: written by python -m benchmarks {command} -->\n"
    end = f"<!-- end of {name} -->"
    page = path.read_text() if path.exists() else ""
    if begin not in page or end not in page:
        page += f"{begin}{end}\n"
    before, after = page.split(begin, 1)
    path.write_text(f"{before}{begin}{text}{end}{after.split(end, 1)[1]}")
