"""Where texts are read from: a file, or standard input."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

from llmopt.cli.exits import BadInput
from llmopt.cli.text import plain

STDIN: Final = "-"
_LOOKED_AT: Final = 8192
_BLOCK: Final = 1 << 18
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class Source:
    """A file of texts, or standard input.

    Args:
        path: of the file, "-" for standard input.

    Raises:
        BadInput: it is a directory, is not there, or may not be read.
    """

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self.name: Final = "standard input" if path == STDIN else plain(path)
        self._status: Final = self._checked()

    @property
    def repeatable(self) -> bool:
        """Whether it can be read from the beginning more than once."""
        return self._path != STDIN and self._status is not None and stat.S_ISREG(self._status.st_mode)

    @property
    def interactive(self) -> bool:
        """Whether somebody types it."""
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
            BadInput: it cannot be read, or it is no text.
        """
        with self._opened() as file:
            first = True
            while block := self._read(file):
                if first:
                    self._refuse_binary(block[:_LOOKED_AT])
                    first = False
                yield block

    def _checked(self) -> os.stat_result | None:
        if self._path == STDIN:
            return _status_of_stdin()
        try:
            status = Path(self._path).stat()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if stat.S_ISDIR(status.st_mode):
            raise BadInput(f"{self.name} is a directory; name a file in it.")
        if not os.access(self._path, os.R_OK):
            raise BadInput(f"{self.name} cannot be read: Permission denied.")
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
            return _at_once(file)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> BadInput:
        reason = getattr(error, "strerror", None) or "this is no path"
        return BadInput(f"{self.name} cannot be read: {reason}.")

    def _refuse_binary(self, head: bytes) -> None:
        if head.startswith(_UTF16):
            raise BadInput(
                f"{self.name} is UTF-16, not UTF-8; convert it first, for instance with: iconv -f UTF-16 -t UTF-8"
            )
        at = head.find(b"\0")
        if at >= 0:
            raise BadInput(
                f"{self.name} is binary, not UTF-8 text: byte {at + 1}, in line {head.count(10, 0, at) + 1}, is a NUL."
            )


def _at_once(file: BinaryIO) -> bytes:
    """What is there: texts that come slowly are embedded as they come."""
    if isinstance(file, io.BufferedReader):
        return file.read1(_BLOCK)
    return file.read(_BLOCK)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        # The process was started with its standard input closed.
        raise BadInput("standard input is closed; give a file, or pipe the texts in.")
    return sys.stdin.buffer


def _status_of_stdin() -> os.stat_result | None:
    try:
        return os.fstat(_stdin().fileno())
    except (OSError, ValueError):
        # Not a file of the system's.
        return None
