"""Input of ``llmopt embed``: reads texts from .txt, .jsonl and .csv files, or from standard input.

Making a `Source` or `Texts` looks at the file's status and permissions. The file, or standard input, is read piece by
piece as texts are asked for, in the thread that asks, which blocks meanwhile; `Texts.total` reads a regular file up to
1 GiB once more, before. Reading CSV sets the csv module's limit for the length of a field, for the whole process and
for good. No requests, no threads of its own, no clock.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final, Literal, Protocol, get_args

import msgspec

from llmopt.cli.console import CommandError, InputError, printable, quoted_list
from llmopt.operations.embed import text_error
from llmopt.values.lenient_json import REPLACEMENT, join_halves

# The input as bytes: a file or standard input.

STDIN: Final = "-"
_SNIFFED_BYTES: Final = 8192
_BLOCK_BYTES: Final = 1 << 18
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class Source:
    """A file of texts, or standard input.

    Args:
        path: of the file, "-" for standard input.

    Raises:
        InputError: it is a directory, is not there, or may not be read.
    """

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self.name: Final = "standard input" if path == STDIN else printable(path)
        self._status: Final = self._check()

    @property
    def repeatable(self) -> bool:
        """Whether it can be read from the beginning more than once."""
        return self._path != STDIN and self._status is not None and stat.S_ISREG(self._status.st_mode)

    @property
    def interactive(self) -> bool:
        """Whether it is a terminal."""
        return self._path == STDIN and _stdin().isatty()

    @property
    def size(self) -> int:
        """Bytes of a regular file."""
        return self._status.st_size if self._status is not None else 0

    def is_file(self, other: os.stat_result) -> bool:
        """Whether it is the very file that was looked at."""
        return self._status is not None and os.path.samestat(self._status, other)

    def blocks(self) -> Iterator[bytes]:
        """The bytes, in blocks as they come.

        Raises:
            InputError: it cannot be read, or it is no text.
        """
        with self._opened() as file:
            first = True
            while block := self._read(file):
                if first:
                    self._check_is_text(block[:_SNIFFED_BYTES])
                    first = False
                yield block

    def _check(self) -> os.stat_result | None:
        if self._path == STDIN:
            return _status_of_stdin()
        try:
            status = Path(self._path).stat()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{self.name} is a directory; name a file in it.")
        if not os.access(self._path, os.R_OK):
            raise InputError(f"{self.name} cannot be read: Permission denied.")
        return status

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        if self._path == STDIN:
            return nullcontext(_stdin())
        try:
            return Path(self._path).open("rb")
        except OSError as error:
            raise self._unreadable(error) from None

    def _read(self, file: BinaryIO) -> bytes:
        try:
            return _read_available(file)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or "this is no path"
        return InputError(f"{self.name} cannot be read: {reason}.")

    def _check_is_text(self, head: bytes) -> None:
        if head.startswith(_UTF16):
            raise InputError(
                f"{self.name} is UTF-16, not UTF-8; convert it first, for instance with: iconv -f UTF-16 -t UTF-8"
            )
        # Text has no NUL; archives, images and UTF-16 without a mark nearly always do.
        at = head.find(b"\0")
        if at >= 0:
            raise InputError(
                f"{self.name} is binary, not UTF-8 text: byte {at + 1}, in line {head.count(10, 0, at) + 1}, is a NUL."
            )


def _read_available(file: BinaryIO) -> bytes:
    """What is there: texts that come slowly are embedded as they come."""
    if isinstance(file, io.BufferedReader):
        # `read` would wait until a whole block has come, which from a terminal or a slow pipe takes long.
        return file.read1(_BLOCK_BYTES)
    return file.read(_BLOCK_BYTES)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        # The process was started with its standard input closed.
        raise InputError("standard input is closed; give a file, or pipe the texts in.")
    return sys.stdin.buffer


def _status_of_stdin() -> os.stat_result | None:
    try:
        return os.fstat(_stdin().fileno())
    except (OSError, ValueError):
        # Not a file of the system's.
        return None


# Bytes into text, decoded in chunks of many lines, which is much faster than line by line.

_MAX_LINE_BYTES: Final = 64 << 20


class LineReader:
    """The text of a source in pieces of whole lines, without a byte order mark.

    Args:
        source: where the bytes come from.

    Attributes:
        replaced: halves of surrogate pairs so far that were replaced with U+FFFD; no text can be sent with one.
    """

    def __init__(self, source: Source) -> None:
        self._source: Final = source
        self.name: Final = source.name
        self.replaced = 0

    def chunks(self) -> Iterator[str]:
        """Text that ends with a line feed, except for the last piece perhaps.

        Raises:
            InputError: a byte is not UTF-8, or a line never ends; all lines before it come first.
        """
        line, offset = 1, 0
        for chunk in self._chunks():
            try:
                text = self._decoded(chunk)
            except UnicodeDecodeError as error:
                start = chunk.rfind(b"\n", 0, error.start) + 1
                yield _without_bom(self._decoded(chunk[:start]), offset)
                raise self._undecodable(chunk, error.start, line, offset) from None
            yield _without_bom(text, offset)
            line += chunk.count(b"\n")
            offset += len(chunk)

    def _decoded(self, chunk: bytes) -> str:
        try:
            return chunk.decode()
        except UnicodeDecodeError:
            # Java and some databases write each half of a pair in three bytes (CESU-8).
            return self.without_halves(chunk.decode("utf-8", "surrogatepass"))

    def without_halves(self, text: str) -> str:
        """Text whose pairs of halves are joined, with a single half replaced and counted."""
        joined = join_halves(text)
        self.replaced += joined.count(REPLACEMENT) - text.count(REPLACEMENT)
        return joined

    def _undecodable(self, chunk: bytes, at: int, line: int, offset: int) -> InputError:
        return InputError(
            f"{self.name}, line {line + chunk.count(10, 0, at)}: byte {offset + at + 1} of the input "
            f"(0x{chunk[at]:02X}) is not UTF-8; convert it first, for instance with: iconv -f LATIN1 -t UTF-8"
        )

    def _chunks(self) -> Iterator[bytes]:
        """Blocks, cut behind a line feed."""
        parts: list[bytes] = []
        size = 0
        for block in self._source.blocks():
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts, size = [], 0
            parts.append(block[end:])
            size += len(block) - end
            if size > _MAX_LINE_BYTES:
                raise InputError(
                    f"{self.name} has a line of more than {_MAX_LINE_BYTES >> 20} MiB; cut it into several texts."
                )
        if size:
            yield b"".join(parts)


def _without_bom(text: str, offset: int) -> str:
    return text if offset else text.removeprefix("\ufeff")


# .csv: a header line, and the text in one of the columns.

_MAX_FIELD_LENGTH: Final = 64 << 20


class CsvReader:
    """The text of each record is one of its columns. Texts in quotes may hold line breaks.

    Args:
        lines: of the source.
        column: name of the column in the header.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: LineReader, column: str) -> None:
        self._lines: Final = lines
        self._column: Final = column
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of the line that its record begins in."""
        # The csv module refuses fields above 128 KiB by default.
        csv.field_size_limit(_MAX_FIELD_LENGTH)
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
            raise InputError(
                f"{self._lines.name}, line {number}: the column {self._quoted} is there {times} times."
            )
        raise InputError(
            f"{self._lines.name}, line {number}: there is no column {self._quoted}; the columns there are "
            f"{quoted_list(header)} (choose one with --column)."
        )

    @property
    def _quoted(self) -> str:
        return repr(printable(self._column))


class _Records:
    """The records of a CSV file, each with the number of its first line."""

    def __init__(self, lines: LineReader) -> None:
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
        for piece in self._lines.chunks():
            # LineReader end at line feeds alone; the quoted ones are kept as they are.
            yield from io.StringIO(piece, newline="\n")

    def bad(self, number: int, fault: str) -> InputError:
        return InputError(f"{self._lines.name}, line {number}: {fault}.")


# .jsonl: one JSON object per line.

_KINDS: Final = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}  # fmt: skip


class JsonlReader:
    """The text of each line is one field of the object that stands there.

    Args:
        lines: of the source.
        field: name of the field.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: LineReader, field: str) -> None:
        self._lines: Final = lines
        self._field: Final = field
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""
        number = 0
        for piece in self._lines.chunks():
            lines = piece.split("\n")
            # A line feed at the end of a piece ends a line and begins none.
            if not lines[-1]:
                lines.pop()
            for line in lines:
                number += 1
                if line and not line.isspace():
                    yield number, self._text(line, number)
                else:
                    self.skipped += 1

    def _text(self, line: str, number: int) -> str:
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            found = self._lenient(line, number, error)
        if type(found) is dict and type(text := found.get(self._field)) is str:
            return text
        raise self._bad(number, self._fault(found))

    def _lenient(self, line: str, number: int, error: Exception) -> Any:
        """Decode what Python and JavaScript write and JSON lacks: NaN, infinite numbers, halves of surrogate pairs."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise self._bad(number, f"not valid JSON: {error}") from None
        if isinstance(found, dict) and isinstance(text := found.get(self._field), str):
            found[self._field] = self._lines.without_halves(text)
        return found

    def _fault(self, found: Any) -> str:
        if not isinstance(found, dict):
            return f'this is {_KINDS[type(found)]}, not an object such as {{{self._quoted}: "..."}}'
        if self._field not in found:
            return (
                f"there is no field {self._quoted}; the fields there are {quoted_list(found) or 'none'} "
                "(choose one with --field)"
            )
        return f"the field {self._quoted} holds {_KINDS[type(found[self._field])]}, not text"

    @property
    def _quoted(self) -> str:
        return msgspec.json.encode(printable(self._field)).decode()

    def _bad(self, number: int, fault: str) -> InputError:
        return InputError(f"{self._lines.name}, line {number}: {fault}.")


# The texts of an input in any format.

InputFormat = Literal["txt", "jsonl", "csv"]
FORMATS: Final[tuple[str, ...]] = get_args(InputFormat)
_EXTENSIONS: Final[dict[str, InputFormat]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_MAX_CHECKED_BYTES: Final = 1 << 30


class FormatReader(Protocol):
    """Reads one format."""

    skipped: int

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""


class Texts:
    """The texts of an input with the numbers of their lines, read as they are asked for.

    Args:
        path: of the file, "-" for standard input.
        form: its format, None for what the extension says.
        name: field or column of the text, None for "text".
        limit: most texts, None for all.
        check_texts: whether a text that cannot be sent is an error here, with its line.

    Raises:
        InputError: the input cannot be opened.
    """

    def __init__(
        self, path: str, form: InputFormat | None, *, name: str | None, limit: int | None, check_texts: bool
    ) -> None:
        self.source: Final = Source(path)
        self._form: Final = form or input_format_for(path)
        self._name: Final = name or "text"
        self._limit: Final = limit
        self._check_texts: Final = check_texts
        self._lines = LineReader(self.source)
        self._reader = self._open()

    @property
    def skipped(self) -> int:
        """Blank lines so far."""
        return self._reader.skipped

    @property
    def replaced(self) -> int:
        """Halves of surrogate pairs so far that were replaced with U+FFFD."""
        return self._lines.replaced

    def __iter__(self) -> Iterator[tuple[int, str]]:
        self._reader = self._open()
        index = -1
        for index, (line, text) in enumerate(islice(self._reader, self._limit)):
            if self._check_texts and (fault := text_error(text, index)) is not None:
                raise InputError(f"{self.source.name}, line {line}: {fault.message}")
            yield line, text
        if index < 0:
            raise InputError(f"{self.source.name} is empty: there is no text to embed in it.")

    def total(self) -> int | None:
        """The number of texts, all of them checked; None for what can be read only once, or is very large.

        Raises:
            InputError: a text cannot be read. Nothing was sent yet.
        """
        # Standard input can be read only once, and reading a very large file twice would delay the first
        # request.
        if not self.source.repeatable or self.source.size > _MAX_CHECKED_BYTES:
            return None
        return sum(1 for _ in self)

    def _open(self) -> FormatReader:
        lines = self._lines = LineReader(self.source)
        if self._form == "jsonl":
            return JsonlReader(lines, self._name)
        if self._form == "csv":
            return CsvReader(lines, self._name)

        return TxtReader(lines)


def input_format_for(path: str) -> InputFormat:
    """The format that an extension stands for; a text a line where it stands for none."""
    return "txt" if path == STDIN else _EXTENSIONS.get(PurePath(path).suffix.lower(), "txt")


def text_key(form: InputFormat, field: str | None, column: str | None) -> str | None:
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


# .txt: one text per line.


class TxtReader:
    """Every line that is not blank is a text.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: LineReader) -> None:
        self._lines: Final = lines
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""
        number = 0
        for piece in self._lines.chunks():
            texts = piece.split("\n")
            if not texts[-1]:
                texts.pop()
            for text in texts:
                number += 1
                if text and not text.isspace():
                    # Files from Windows end their lines with CR LF.
                    yield number, text.removesuffix("\r")
                else:
                    self.skipped += 1
