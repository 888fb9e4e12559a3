"""The files of a store: their names, which of them is ours, and what becomes of one that is broken."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmopt.cache.database import Database
from llmopt.cache.lock import FileLock
from llmopt.cache.places import Refused, make_private, private_file, private_folder, writable_by_others
from llmopt.cache.schema import VERSION, ForeignSchemaError
from llmopt.cache.trouble import trouble_of

_log: Final = logging.getLogger("llmopt")
_MOST_NAMES: Final = 4
_BESIDE: Final = ("-wal", "-shm")


class CacheFiles:
    """The files in one folder.

    Args:
        folder: the folder; it is made when the first file is.
        max_bytes: what the database may take.
        wall: the calendar.
    """

    def __init__(self, folder: Path, *, max_bytes: int, wall: Callable[[], float] = time.time) -> None:
        self.folder: Final = folder
        self.path = folder / f"cache-{VERSION}.db"
        self._max_bytes: Final = max_bytes
        self._wall: Final = wall

    def open(self) -> Database:
        """The database, made if it is not there, and begun anew if it is broken.

        Raises:
            Refused: the place cannot be used.
            sqlite3.Error, OSError, Busy: it cannot be opened.
        """
        private_folder(self.folder)
        for path in self._names():
            try:
                found = self._open(path)
            except ForeignSchemaError:
                continue
            self.path = path
            return found
        raise Refused(f"all of {self._names()} are other databases")

    def _names(self) -> Iterator[Path]:
        # A file of another version, or of somebody else, is left alone.
        for number in range(1, _MOST_NAMES + 1):
            more = f".{number}" if number > 1 else ""
            yield self.folder / f"cache-{VERSION}{more}.db"

    def _open(self, path: Path) -> Database:
        for last in (False, True):
            inode = self._fit(path)
            try:
                return Database(path, max_bytes=self._max_bytes, wall=self._wall, lock=self._lock_of(path))
            except sqlite3.Error as error:
                if last or trouble_of(error) != "broken":
                    raise
            self.set_aside(path, inode)
        raise AssertionError

    def _fit(self, path: Path) -> int:
        """A file that can be opened, made if need be; which one it is."""
        if writable_by_others(path) and private_file(path):
            # What it holds is anybody's.
            self.set_aside(path, path.stat().st_ino)
        if not private_file(path):
            with suppress(FileExistsError):
                make_private(path)
        for beside in (*_BESIDE, ".lock"):
            private_file(path.with_name(path.name + beside))
        return path.stat().st_ino

    def set_aside(self, path: Path, inode: int) -> None:
        """Give a broken file another name, unless somebody else has done so; what was put aside before goes.

        Args:
            path: the file.
            inode: which file it was that is broken.
        """
        lock = FileLock(self._lock_of(path))
        try:
            with lock.held():
                if path.stat().st_ino == inode:
                    self._rename(path)
        except FileNotFoundError:
            return
        finally:
            lock.close()

    def _rename(self, path: Path) -> None:
        for old in self.folder.glob(f"{path.name}.corrupt-*"):
            old.unlink(missing_ok=True)
        # These first: a new file of the name must never be found beside the old one's log.
        for beside in _BESIDE:
            path.with_name(path.name + beside).unlink(missing_ok=True)
        path.rename(path.with_name(f"{path.name}.corrupt-{int(self._wall())}"))
        _log.warning("the cache %s was damaged; it was put aside, and a new one begun.", path)

    @staticmethod
    def _lock_of(path: Path) -> Path:
        return path.with_name(f"{path.name}.lock")
