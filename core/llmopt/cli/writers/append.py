"""A file that only grows, by whole pieces."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final


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
        """Let the file go."""
        self._file.close()
