"""Comma-separated values with a header line, the text in one of the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Final

from llmopt.cli.exits import BadInput
from llmopt.cli.readers.lines import Lines
from llmopt.cli.text import listed, plain

_LONGEST_FIELD: Final = 64 << 20


class CsvReader:
    """The text of each record is one of its columns. Texts in quotes may hold line breaks.

    Args:
        lines: of the source.
        column: name of the column in the header.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: Lines, column: str) -> None:
        self._lines: Final = lines
        self._column: Final = column
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of the line that its record begins in."""
        csv.field_size_limit(_LONGEST_FIELD)
        records = _Records(self._lines)
        place: int | None = None
        for number, record in records:
            if not record:
                self.skipped += 1
            elif place is None:
                place = self._place(record, number)
            elif len(record) <= place:
                raise records.bad(
                    number, f"{len(record)} columns, {self._quoted} is column {place + 1} of the header"
                )
            else:
                yield number, record[place]

    def _place(self, header: list[str], number: int) -> int:
        times = header.count(self._column)
        if times == 1:
            return header.index(self._column)
        if times:
            raise BadInput(
                f"{self._lines.name}, line {number}: the column {self._quoted} is there {times} times."
            )
        raise BadInput(
            f"{self._lines.name}, line {number}: there is no column {self._quoted}; the columns there are "
            f"{listed(header)} (choose one with --column)."
        )

    @property
    def _quoted(self) -> str:
        return repr(plain(self._column))


class _Records:
    """The records of a CSV file, each with the number of its first line."""

    def __init__(self, lines: Lines) -> None:
        self._lines: Final = lines

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        # Strict, or one quote that is never closed would swallow the rest of the file.
        records = csv.reader(self._rows(), strict=True)
        number = 1
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.bad(number, f"not valid CSV: {error}") from None
            yield number, record
            number = records.line_num + 1

    def _rows(self) -> Iterator[str]:
        for piece in self._lines.pieces():
            # Lines end at line feeds alone; the quoted ones are kept as they are.
            yield from io.StringIO(piece, newline="\n")

    def bad(self, number: int, fault: str) -> BadInput:
        return BadInput(f"{self._lines.name}, line {number}: {fault}.")
