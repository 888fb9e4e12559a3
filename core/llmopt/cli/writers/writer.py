"""The writer of a format."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Final, Literal, Protocol, get_args

from llmopt.cli.exits import CommandError
from llmopt.cli.text import plain
from llmopt.cli.writers.rows import Rows

OutputFormat = Literal["npy", "jsonl", "parquet"]
FORMATS: Final[tuple[str, ...]] = get_args(OutputFormat)
_EXTENSIONS: Final[dict[str, OutputFormat]] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


class Writer(Protocol):
    """Writes rows into a file that is there."""

    def add(self, rows: Rows) -> None:
        """Write rows, all of them or none."""
        ...

    def finish(self) -> None:
        """Make the file whole, with the rows it has, and let it go."""
        ...

    def close(self) -> None:
        """Let the file go as it is."""
        ...


def output_form(path: str) -> OutputFormat:
    """The format that an extension stands for.

    Raises:
        CommandError: it stands for none.
    """
    extension = PurePath(path).suffix.lower()
    form = _EXTENSIONS.get(extension)
    if form is None:
        raise CommandError(
            f"--out {plain(path)}: the extension must be .npy, .jsonl or .parquet, or choose one with --format."
        )
    return form


def open_writer(form: OutputFormat, path: Path, *, with_errors: bool, with_text: bool) -> Writer:
    """A writer for a file that is there."""
    if form == "jsonl":
        from llmopt.cli.writers.jsonl import JsonlWriter

        return JsonlWriter(path)
    if form == "parquet":
        from llmopt.cli.writers.parquet import ParquetWriter

        return ParquetWriter(path, with_errors=with_errors, with_text=with_text)
    from llmopt.cli.writers.npy import NpyWriter

    return NpyWriter(path)
