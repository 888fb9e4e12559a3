"""Apache Parquet, through pyarrow, which is an extra."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmopt.cli.exits import CommandError, Exit
from llmopt.cli.writers.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        self._arrow: Final = _module("pyarrow")
        self._parquet: Final = _module("pyarrow.parquet")
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
        """Let the file go."""
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        arrow = self._arrow
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
        valid = arrow.py_buffer(_bits(rows)) if rows.errors else None
        return arrow.Array.from_buffers(kind, len(rows), [valid], children=[numbers])


def _bits(rows: Rows) -> NDArray[np.uint8]:
    """A bit for each row, set where there is a vector."""
    import numpy as np

    valid = np.ones(len(rows), dtype=bool)
    valid[list(rows.errors)] = False
    return np.packbits(valid, bitorder="little")


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise CommandError(
            f'.parquet needs pyarrow, which cannot be imported ({error}); install it with: pip install "llmopt[parquet]"',
            Exit.SETUP,
        ) from None
