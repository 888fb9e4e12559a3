"""Output of ``llmopt embed``: writes vectors to .npy, .jsonl and .parquet files.

It writes to a temporary file with a random name beside the target, and renames that at the end; it opens no other
file and prints nothing. pyarrow is imported for .parquet, numpy at first use. No threads, no clock.
"""

from __future__ import annotations

import io
import math
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import msgspec
from attrs import field, frozen

from llmopt.cli.console import CommandError, Exit, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmopt.cli.readers import Source


class AppendFile:
    """Each piece is written in full or not at all.

    Args:
        path: of a file that is there.

    Attributes:
        size: bytes written.
    """

    def __init__(self, path: Path) -> None:
        # Without a buffer: what was written needs no flush that may fail later.
        self._file: Final = io.FileIO(path, "r+")
        self.size = 0

    def append(self, data: Any) -> None:
        """Write a piece (anything that gives its bytes) at the end.

        Raises:
            OSError: it could not be written; the file ends where it ended before.
        """
        view = memoryview(data).cast("B")
        length = len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except BaseException:
            # A piece written by half (a full disk) would make the rows before it unreadable.
            self._file.truncate(self.size)
            self._file.seek(self.size)
            raise
        self.size += length

    def overwrite(self, data: bytes) -> None:
        """Write over the beginning."""
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        self._file.write(data)
        self._file.seek(self.size)

    def close(self) -> None:
        """Close the file without finishing it."""
        self._file.close()


# The results that a writer gets.


@frozen(kw_only=True, eq=False)
class Rows:
    """Results that follow each other.

    Attributes:
        start: index of the first one.
        lines: for each the number of its line in the input.
        vectors: float32, shape (rows, dimensions), (rows, 0) when all failed; a failed row is NaN.
        errors: the sentence of each failed row, by its position here.
        texts: the texts, where they are written too.
    """

    start: int
    lines: Sequence[int]
    vectors: NDArray[np.float32] = field(repr=False)
    errors: Mapping[int, str] = field(factory=dict)
    texts: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def dimensions(self) -> int:
        """Numbers in a vector, 0 when all rows failed."""
        return int(self.vectors.shape[1])


# .jsonl: one JSON object per text.

_DIGITS: Final = 9
"""Significant digits that distinguish any two float32 numbers."""
_MAX_EXACT_POWER: Final = 22
"""The largest power of ten that is exact in float64."""
_MIN_EXPONENT: Final = -148
"""Smallest exponent of a float32, as frexp returns it; the largest is 128."""


class JsonlWriter:
    """Writes ``{"index": ..., "line": ..., "embedding": [...]}``; a failed row has null and an "error".

    Args:
        path: of a file that is there.
    """

    def __init__(self, path: Path) -> None:
        self._file: Final = AppendFile(path)
        self._encoder: Final = msgspec.json.Encoder()

    def add(self, rows: Rows) -> None:
        """Write rows."""
        numbers = shortest_decimals(rows.vectors).tolist()
        # A list, because encode_lines leaks what a `map` gives it (msgspec 0.22).
        records = [_record(rows, position, each) for position, each in enumerate(numbers)]
        self._file.append(self._encoder.encode_lines(records))

    def finish(self) -> None:
        """All is written already."""
        self._file.close()

    def close(self) -> None:
        """Close the file without finishing it."""
        self._file.close()


def _record(rows: Rows, position: int, numbers: list[float]) -> dict[str, Any]:
    error = rows.errors.get(position)
    record: dict[str, Any] = {
        "index": rows.start + position,
        "line": rows.lines[position],
        "embedding": numbers if error is None else None,
    }
    if rows.texts is not None:
        record["text"] = rows.texts[position]
    if error is not None:
        record["error"] = error
    return record


def shortest_decimals(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Round each float32 to the shortest decimal that reads back as the same float32.

    What is too small or too large for that, or not finite, stays as it is.
    """
    import numpy as np

    exact = vectors.astype(np.float64)
    _, exponents = np.frexp(exact)
    # Clipped, because what frexp counts for a number that is not finite is nowhere written.
    scales = np.take(np.array(_scales()), exponents - _MIN_EXPONENT, mode="clip")
    # A whole number over an exact power of ten is rounded once, to the very float64 of that decimal.
    short = np.rint(exact * scales) / scales
    fits = np.isfinite(short)
    return short if fits.all() else np.where(fits, short, exact)


@cache
def _scales() -> list[float]:
    """For each binary exponent the power of ten that leaves nine digits or ten; NaN where none is exact."""
    powers = [_DIGITS - math.floor(each * math.log10(2)) for each in range(_MIN_EXPONENT, 129)]
    return [10.0**power if 0 <= power <= _MAX_EXACT_POWER else math.nan for power in powers]


# .npy: the header, which has the number of rows, is written again at the end.

# numpy aligns the data of a file to 64 bytes; 128 hold any shape, so that the header can be written again.
_HEADER_BYTES: Final = 128
_NAN_ROWS: Final = 1024


class NpyWriter:
    """Writes a float32 array of shape (texts, dimensions); a failed row is NaN.

    Args:
        path: of a file that is there.
    """

    def __init__(self, path: Path) -> None:
        self._file: Final = AppendFile(path)
        self._file.append(_header(0, 0))
        self._dimensions = 0
        self._rows = 0
        self._early = 0

    def add(self, rows: Rows) -> None:
        """Write rows. The first ones may have failed before anybody knew how long a vector is."""
        import numpy as np

        if rows.dimensions == 0:
            self._add_failed(len(rows))
            return
        if self._dimensions == 0:
            self._dimensions = rows.dimensions
            early, self._early = self._early, 0
            self._add_failed(early)
        self._file.append(np.ascontiguousarray(rows.vectors, dtype="<f4"))
        self._rows += len(rows)

    def _add_failed(self, count: int) -> None:
        import numpy as np

        if self._dimensions == 0:
            self._early += count
            return
        while count:
            # In pieces, because millions of texts may have failed before the first vector.
            some = min(count, _NAN_ROWS)
            self._file.append(np.full((some, self._dimensions), np.nan, dtype="<f4"))
            self._rows += some
            count -= some

    def finish(self) -> None:
        """Write the shape into the header."""
        self._file.overwrite(_header(self._rows + self._early, self._dimensions))
        self._file.close()

    def close(self) -> None:
        """Close the file without finishing it."""
        self._file.close()


def _header(rows: int, dimensions: int) -> bytes:
    """Version 1.0 of the header, always of one length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}"
    magic = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return magic + text.ljust(_HEADER_BYTES - len(magic) - 1).encode() + b"\n"


# .parquet: through pyarrow, which is an extra.

_GROUP_ROWS: Final = 65_536
_GROUP_BYTES: Final = 16 << 20


class ParquetWriter:
    """Writes the columns index, line and embedding (a list of fixed size), and those asked for besides.

    Args:
        path: of a file that is there.
        with_errors: whether there is a column "error", null where all went well.
        with_text: whether there is a column "text".

    Raises:
        CommandError: pyarrow is not installed.
    """

    def __init__(self, path: Path, *, with_errors: bool, with_text: bool) -> None:
        self._arrow: Final = _import_extra("pyarrow")
        self._parquet: Final = _import_extra("pyarrow.parquet")
        self._path: Final = path
        self._extra: Final = (["error"] if with_errors else []) + (["text"] if with_text else [])
        self._waiting: list[Rows] = []
        self._count = 0
        self._dimensions = 0
        self._writer: Any = None

    def add(self, rows: Rows) -> None:
        """Take rows; they are written as soon as they are enough for a row group."""
        self._waiting.append(rows)
        self._dimensions = self._dimensions or rows.dimensions
        self._count += len(rows)
        size = self._count * self._dimensions * 4
        if self._dimensions and (self._count >= _GROUP_ROWS or size >= _GROUP_BYTES):
            self._write()

    def finish(self) -> None:
        """Write what waits, and the footer."""
        self._write()
        self._writer.close()

    def close(self) -> None:
        """Close the file without finishing it."""
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        arrow = self._arrow
        # -1 is pyarrow's list of variable length, for a file in which every text failed.
        kind = arrow.list_(arrow.float32(), self._dimensions or -1)
        if self._writer is None:
            self._writer = self._open(kind)
        if self._waiting:
            table = arrow.concat_tables([self._table(rows, kind) for rows in self._waiting])
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._waiting, self._count = [], 0

    def _open(self, kind: Any) -> Any:
        arrow = self._arrow
        columns = [("index", arrow.int64()), ("line", arrow.int64()), ("embedding", kind)]
        schema = arrow.schema(columns + [(name, arrow.string()) for name in self._extra])
        # Numbers of this kind neither repeat nor compress.
        return self._parquet.ParquetWriter(self._path, schema, use_dictionary=False)

    def _table(self, rows: Rows, kind: Any) -> Any:
        arrow, count = self._arrow, len(rows)
        columns = {
            "index": arrow.array(range(rows.start, rows.start + count), arrow.int64()),
            "line": arrow.array(rows.lines, arrow.int64()),
            "embedding": self._embeddings(rows, kind),
        }
        if "error" in self._extra:
            columns["error"] = arrow.array([rows.errors.get(row) for row in range(count)], arrow.string())
        if "text" in self._extra:
            columns["text"] = arrow.array(rows.texts, arrow.string())
        return arrow.table(columns)

    def _embeddings(self, rows: Rows, kind: Any) -> Any:
        arrow = self._arrow
        if rows.dimensions == 0:
            return arrow.nulls(len(rows), kind)
        numbers = arrow.array(rows.vectors.reshape(-1))
        valid = arrow.py_buffer(_validity_bitmap(rows)) if rows.errors else None
        return arrow.Array.from_buffers(kind, len(rows), [valid], children=[numbers])


def _validity_bitmap(rows: Rows) -> NDArray[np.uint8]:
    """A bit for each row, set where there is a vector."""
    import numpy as np

    valid = np.ones(len(rows), dtype=bool)
    valid[list(rows.errors)] = False
    return np.packbits(valid, bitorder="little")


def _import_extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise CommandError(
            f'.parquet needs pyarrow, which cannot be imported ({error}); install it with: pip install "llmopt[parquet]"',
            Exit.SETUP,
        ) from None


# The writer for a format.

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

    def finish(self) -> None:
        """Make the file whole, with the rows it has, and let it go."""

    def close(self) -> None:
        """Close the file without finishing it."""


def output_format_for(path: str) -> OutputFormat:
    """The format that an extension stands for.

    Raises:
        CommandError: it stands for none.
    """
    extension = PurePath(path).suffix.lower()
    form = _EXTENSIONS.get(extension)
    if form is None:
        raise CommandError(
            f"--out {printable(path)}: the extension must be .npy, .jsonl or .parquet, or choose one with --format."
        )
    return form


def open_writer(form: OutputFormat, path: Path, *, with_errors: bool, with_text: bool) -> Writer:
    """A writer for a file that is there."""
    if form == "jsonl":
        return JsonlWriter(path)
    if form == "parquet":
        return ParquetWriter(path, with_errors=with_errors, with_text=with_text)

    return NpyWriter(path)


# The output file: complete under its name, or unfinished under another.

PARTIAL: Final = ".partial"


class OutputFile:
    """A file that appears under its name when it is finished, and not before.

    Args:
        path: the name it gets. A link is followed.
        source: the input, which must be another file.

    Raises:
        CommandError: it cannot be written; nothing was changed.
    """

    def __init__(self, path: str, source: Source) -> None:
        self.name: Final = printable(path)
        if path == "-":
            raise CommandError("--out must name a file; standard output takes no vectors.")
        # A rename onto a link would replace the link and leave the file that it names as it was.
        self._target: Final = Path(os.path.realpath(path))
        self._check(source)
        # Beside it, because only within one file system can it be renamed at once.
        self.temporary: Final = self._target.with_name(f".llmopt-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._settled = False

    def create(self) -> None:
        """Make the temporary file, which proves that it can be made."""
        try:
            # O_EXCL: a file or link of that name, which another user may have made, is never opened.
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise self._refusal(error) from None

    def commit(self) -> None:
        """Give the temporary file its name.

        Raises:
            CommandError: the system refuses.
        """
        try:
            self.temporary.replace(self._target)
        except OSError as error:
            raise self._refusal(error) from None
        self._settled = True

    def keep_partial(self) -> str:
        """Keep the temporary file under a name that says it is not whole.

        Returns:
            That name.
        """
        self._settled = True
        try:
            self.temporary.replace(f"{self._target}{PARTIAL}")
        except OSError:
            # The name may be too long; the finished rows stay where they are.
            return str(self.temporary)
        return self.name + PARTIAL

    def discard(self) -> None:
        """Remove the temporary file, unless it was given a name."""
        if not self._settled:
            with suppress(OSError):
                self.temporary.unlink()

    def _check(self, source: Source) -> None:
        try:
            status = self._target.stat()
        except FileNotFoundError:
            self._check_folder()
            return
        except (OSError, ValueError) as error:
            raise self._refusal(error) from None
        if stat.S_ISDIR(status.st_mode):
            raise CommandError(f"--out {self.name} is a directory; name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"--out {self.name} is not a regular file; name one that is, or a new one.")
        if source.is_file(status):
            raise CommandError(f"--out {self.name} is the input itself; name another file.")
        # A rename would replace a file that its owner has protected against writing.
        if not os.access(self._target, os.W_OK):
            raise CommandError(f"--out {self.name} cannot be written: Permission denied.")
        self._check_folder()

    def _check_folder(self) -> None:
        folder = self._target.parent
        if not folder.is_dir():
            raise CommandError(
                f"--out {self.name}: the directory {printable(str(folder))} does not exist; make it first."
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CommandError(
                f"--out {self.name}: the directory {printable(str(folder))} cannot be written to: Permission denied."
            )

    def _refusal(self, error: Exception) -> CommandError:
        reason = getattr(error, "strerror", None) or "this is no path"
        return CommandError(f"--out {self.name} cannot be written: {reason}.")
