"""Rows for people: a table on a terminal, tab-separated lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from llmopt.cli.text import plain


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    """Print rows on standard output.

    Args:
        columns: heads, shown on a terminal only. A column without any content is left out there.
        rows: a cell for each column.
        no_color: without colours.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
    elif cells:
        _draw(columns, cells, no_color=no_color)


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in filled:
        # Folded, not cut: every name can be copied whole.
        table.add_column(columns[place], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[place]) for place in filled))
    Console(no_color=no_color or None).print(table)
