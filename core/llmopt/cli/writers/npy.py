"""numpy's own format, written row by row.

The number of rows stands in the header, in front of them: room is left for it and filled at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llmopt.cli.writers.append import AppendFile
from llmopt.cli.writers.rows import Rows

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
            some = min(count, _NAN_ROWS)
            self._file.append(np.full((some, self._dimensions), np.nan, dtype="<f4"))
            self._rows += some
            count -= some

    def finish(self) -> None:
        """Write the shape into the header."""
        self._file.overwrite(_header(self._rows + self._early, self._dimensions))
        self._file.close()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _header(rows: int, dimensions: int) -> bytes:
    """Version 1.0 of the header, always of one length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}"
    magic = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return magic + text.ljust(_HEADER_BYTES - len(magic) - 1).encode() + b"\n"
