"""The texts of an input, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import PurePath
from typing import Final, Literal, Protocol, get_args

from llmopt.cli.exits import BadInput, CommandError
from llmopt.cli.readers.lines import Lines
from llmopt.cli.readers.source import STDIN, Source
from llmopt.operations.inputs import fault_of

InputFormat = Literal["txt", "jsonl", "csv"]
FORMATS: Final[tuple[str, ...]] = get_args(InputFormat)
_EXTENSIONS: Final[dict[str, InputFormat]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_CHECKED_BYTES: Final = 1 << 30


class FormatReader(Protocol):
    """Reads one format."""

    skipped: int

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""
        ...


class Texts:
    """The texts of an input with the numbers of their lines, read as they are asked for.

    Args:
        path: of the file, "-" for standard input.
        form: its format, None for what the extension says.
        name: field or column of the text, None for "text".
        limit: most texts, None for all.
        refuse: whether a text that cannot be sent is an error here, with its line.

    Raises:
        BadInput: the input cannot be opened.
    """

    def __init__(
        self, path: str, form: InputFormat | None, *, name: str | None, limit: int | None, refuse: bool
    ) -> None:
        self.source: Final = Source(path)
        self._form: Final = form or form_of(path)
        self._name: Final = name or "text"
        self._limit: Final = limit
        self._refuse: Final = refuse
        self._reader = self._open()

    @property
    def skipped(self) -> int:
        """Blank lines so far."""
        return self._reader.skipped

    def __iter__(self) -> Iterator[tuple[int, str]]:
        self._reader = self._open()
        index = -1
        for index, (line, text) in enumerate(islice(self._reader, self._limit)):
            if self._refuse and (fault := fault_of(text, index)) is not None:
                raise BadInput(f"{self.source.name}, line {line}: {fault.message}")
            yield line, text
        if index < 0:
            raise BadInput(f"{self.source.name} is empty: there is no text to embed in it.")

    def total(self) -> int | None:
        """The number of texts, all of them checked; None for what can be read only once, or is very large.

        Raises:
            BadInput: a text cannot be read. Nothing was sent yet.
        """
        if not self.source.repeatable or self.source.size > _CHECKED_BYTES:
            return None
        return sum(1 for _ in self)

    def _open(self) -> FormatReader:
        lines = Lines(self.source)
        if self._form == "jsonl":
            from llmopt.cli.readers.jsonl import JsonlReader

            return JsonlReader(lines, self._name)
        if self._form == "csv":
            from llmopt.cli.readers.csv import CsvReader

            return CsvReader(lines, self._name)
        from llmopt.cli.readers.txt import TxtReader

        return TxtReader(lines)


def form_of(path: str) -> InputFormat:
    """The format that an extension stands for; a text a line where it stands for none."""
    return "txt" if path == STDIN else _EXTENSIONS.get(PurePath(path).suffix.lower(), "txt")


def chosen_name(form: InputFormat, field: str | None, column: str | None) -> str | None:
    """The field or column to read.

    Raises:
        CommandError: it was given for a format that has none.
    """
    if field is not None and form != "jsonl":
        raise CommandError(
            f"--field is for .jsonl, and this is {form} (say so with --input-format if it is not)."
        )
    if column is not None and form != "csv":
        raise CommandError(
            f"--column is for .csv, and this is {form} (say so with --input-format if it is not)."
        )
    return field if form == "jsonl" else column
