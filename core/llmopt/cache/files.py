"""The files of a store: their names, which of them is ours, and what becomes of one that is broken."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmopt.cache.sqlite import VERSION, Database, FileLock, ForeignSchemaError, classify_sqlite_error

# Where files may lie: in a folder that is ours, under names that are ours.
#
# Whoever else can write there could plant answers, or have us write over a file of the user's through a
# link. So both are looked at before anything is opened, and what is made is readable for nobody else.

_PRIVATE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
_WRITABLE_BY_OTHERS: Final = 0o022


class Refused(Exception):
    """A place cannot be used; the message says why."""


def private_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and see whether it is fit.

    Raises:
        Refused: it is a link of somebody else's, somebody else's, writable for others, or cannot be made.
    """
    if os.name != "posix":
        raise Refused("this system has no owners of files as they are relied on here")
    try:
        _make_folder(folder)
        link, found, parent = folder.lstat(), folder.stat(), folder.resolve().parent.stat()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "this is no path"
        raise Refused(f"the folder cannot be made: {reason}") from None
    if not _ours(link) or not _ours(found):
        raise Refused("the folder belongs to another user")
    if found.st_mode & _WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
        raise Refused("other users may write into the folder")
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise Refused("other users may put another folder in its place")


def _make_folder(folder: Path) -> None:
    # The folders above too: those that mkdir makes by itself are open to whomever the umask lets in.
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(exist_ok=True, mode=_PRIVATE_FOLDER)
    if not folder.is_dir():
        raise Refused("the folder cannot be made: there is something else in its place")


def private_file(path: Path) -> bool:
    """See whether a file is fit to be opened, and make it readable for nobody else.

    Returns:
        False when there is none yet.

    Raises:
        Refused: it is a link, somebody else's, or no file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Refused(f"{path.name} cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path.name} is a link or no file at all")
    if not _ours(found):
        raise Refused(f"{path.name} belongs to another user")
    if stat.S_IMODE(found.st_mode) & ~_PRIVATE:
        # In a folder that cannot be changed it stays as it is; others may read it then, and not write.
        with suppress(OSError):
            path.chmod(_PRIVATE)
    return True


def writable_by_others(path: Path) -> bool:
    """Whether others may write to a file, so that what it holds is anybody's. A link is no file."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & _WRITABLE_BY_OTHERS)


def make_private(path: Path) -> None:
    """Make an empty file that nobody else may read; SQLite gives the files beside it the same permissions.

    Raises:
        FileExistsError: there is something of that name by now.
        OSError: it cannot be made.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _PRIVATE))


def _ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid()


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
                if last or classify_sqlite_error(error) != "broken":
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


# A secret of this installation, so that keys of a cache tell nobody which credentials there are.
#
# Without it, whoever reads the cache could try a list of keys against the hashes in it.

_LENGTH: Final = 32
_NAME: Final = "secret"


def installation_secret(folder: Path) -> bytes | None:
    """The 32 bytes that all processes that use a folder share, made by the first of them. Reads a file.

    Returns:
        None where the folder cannot be used.
    """
    path = folder / _NAME
    try:
        private_folder(folder)
        for _ in range(3):
            if writable_by_others(path):
                # Anybody may have put it there.
                path.unlink()
            if private_file(path):
                found = _read(path)
                if found is not None:
                    return found
            _write_secret(path)
    except (Refused, OSError):
        pass
    return None


def _read(path: Path) -> bytes | None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.read(file, _LENGTH + 1)
    finally:
        os.close(file)
    if len(found) == _LENGTH:
        return found
    # Cut, or somebody else's; whoever comes first makes another.
    path.unlink(missing_ok=True)
    return None


def _write_secret(path: Path) -> None:
    """Make the file, whole from the first moment on; another process may be faster."""
    temporary = path.with_name(f"{_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, secrets.token_bytes(_LENGTH))
    finally:
        os.close(file)
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
