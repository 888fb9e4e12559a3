"""Files of the disk cache: private folders and files, where the database is, and what replaces a broken one.

Anyone who can write to the cache's folder could plant answers, or make llmopt overwrite another file through a
symbolic link. So folder and files are checked before anything is opened (owner, permissions, no links), and
everything is created readable by its owner alone.

Everything here blocks and touches the disk; `DiskStore` calls it on its thread, and `installation_secret` is for a
worker thread. `open` opens the database; replacing a broken one waits up to 5 seconds for a lock between processes.
The secret and the names of temporary files are random; the wall clock, which is passed in, names a
file that was replaced, and the log says so. It keeps no state but the path of the database.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmopt._platform import NO_FOLLOW, has_private_files, is_own
from llmopt.cache.sqlite import SCHEMA_VERSION, Database, ForeignSchemaError, classify_sqlite_error, file_lock
from llmopt.log import CACHE, WARNING

_PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
_WRITABLE_BY_OTHERS: Final = 0o022
# Names tried for the database: files of other programs or versions are skipped.
_MAX_NAMES: Final = 4
# Files that SQLite keeps beside a database in WAL mode.
_SIDE_FILES: Final = ("-wal", "-shm")
_SECRET_NAME: Final = "secret"  # noqa: S105 - the name of the file
_SECRET_BYTES: Final = 32


class UnsafePath(Exception):
    """A folder or file must not be used; the message says why."""


class CacheFiles:
    """The database files in one folder.

    Args:
        folder: the folder, created with the first file.
        max_bytes: limit of the database.
        wall: the calendar, in seconds since 1970.

    Attributes:
        path: the database file that was opened last.
    """

    def __init__(self, folder: Path, *, max_bytes: int, wall: Callable[[], float] = time.time) -> None:
        self.folder: Final = folder
        self.path = folder / f"cache-{SCHEMA_VERSION}.db"
        self._max_bytes: Final = max_bytes
        self._wall: Final = wall

    def open(self) -> Database:
        """Open the database; create it if it does not exist, replace it if it is corrupt.

        Raises:
            UnsafePath: the folder or a file must not be used.
            sqlite3.Error, OSError, LockTimeout: it cannot be opened.
        """
        ensure_private_folder(self.folder)
        for path in self._candidates():
            # A database of another version or program is left alone; the next name is tried.
            with suppress(ForeignSchemaError):
                database = self._open(path)
                self.path = path
                return database
        names = ", ".join(path.name for path in self._candidates())
        raise UnsafePath(f"{names} are other databases")

    def _candidates(self) -> Iterator[Path]:
        for number in range(1, _MAX_NAMES + 1):
            suffix = f".{number}" if number > 1 else ""
            yield self.folder / f"cache-{SCHEMA_VERSION}{suffix}.db"

    def _open(self, path: Path) -> Database:
        # Twice at most: a new file that is corrupt at once means a broken disk.
        for last_try in (False, True):
            inode = self._prepare(path)
            try:
                return Database(path, max_bytes=self._max_bytes, wall=self._wall, lock=_lock_path(path))
            except sqlite3.Error as error:
                if last_try or classify_sqlite_error(error) != "corrupt":
                    raise
            self.quarantine(path, inode)
        raise AssertionError

    def _prepare(self, path: Path) -> int:
        """Check a file and those beside it, create it if needed, and return its inode."""
        if (mode := mode_if_writable_by_others(path)) and check_private_file(path):
            # Others may have written its contents.
            reason = f"could be written by other users (its mode is {mode:04o})"
            self.quarantine(path, path.stat().st_ino, reason, suffix="writable")
        # SQLite would create the file with the permissions of the umask.
        if not check_private_file(path):
            with suppress(FileExistsError):
                create_private_file(path)
        for suffix in (*_SIDE_FILES, ".lock"):
            check_private_file(path.with_name(path.name + suffix))
        return path.stat().st_ino

    def quarantine(
        self, path: Path, inode: int, reason: str = "is damaged", *, suffix: str = "corrupt"
    ) -> None:
        """Rename a file that must not be used to ``*.<suffix>-<time>``, and delete one that was renamed before.

        Args:
            path: the file.
            inode: inode of the file that must not be used. Nothing happens if the path has another one by now,
                because another process has replaced the file already.
            reason: why, for the log.
            suffix: the same in one word.
        """
        with suppress(FileNotFoundError), file_lock(_lock_path(path)):
            # Of two processes that find the file corrupt, the second must not rename the first one's new file.
            if path.stat().st_ino == inode:
                self._rename(path, suffix)
                message = f"the cache file {path} {reason}; it was renamed to *.{suffix}-* and replaced."
                CACHE.write(WARNING, "cache.replaced", message, {"path": str(path)})

    def _rename(self, path: Path, suffix: str) -> None:
        for old in self.folder.glob(f"{path.name}.{suffix}-*"):
            old.unlink(missing_ok=True)
        # Side files first: SQLite would replay the old WAL into a new database of the same name.
        for side_file in _SIDE_FILES:
            path.with_name(path.name + side_file).unlink(missing_ok=True)
        path.rename(path.with_name(f"{path.name}.{suffix}-{int(self._wall())}"))


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def ensure_private_folder(folder: Path) -> None:
    """Create a folder if it does not exist, and check that only its owner can change it.

    Raises:
        UnsafePath: it belongs to another user, others may write into it or replace it, or it cannot be created.
    """
    if not has_private_files():
        raise UnsafePath("the disk cache needs file permissions and locks as POSIX systems have them")
    try:
        _create_folder(folder)
        link, target, parent = folder.lstat(), folder.stat(), folder.resolve().parent.stat()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise UnsafePath(f"the folder cannot be created: {reason}") from None
    if not is_own(link) or not is_own(target):
        raise UnsafePath("the folder belongs to another user")
    # In a sticky folder such as /tmp, others may create files but not rename or delete ours.
    if target.st_mode & _WRITABLE_BY_OTHERS and not target.st_mode & stat.S_ISVTX:
        raise UnsafePath("other users may write into the folder")
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise UnsafePath("other users may replace the folder")


def _create_folder(folder: Path) -> None:
    # One by one, because mkdir(parents=True) would create the parents with the umask's permissions.
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(exist_ok=True, mode=_PRIVATE_FOLDER)
    if not folder.is_dir():
        raise UnsafePath("the folder cannot be created: there is a file of that name")


def check_private_file(path: Path) -> bool:
    """Check that a file may be opened, and remove other users' permissions to read it.

    Returns:
        False if it does not exist.

    Raises:
        UnsafePath: it is a link, belongs to another user, or is not a regular file.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnsafePath(f"{path.name} cannot be examined: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(f"{path.name} is a link or not a regular file")
    if not is_own(status):
        raise UnsafePath(f"{path.name} belongs to another user")
    if not status.st_mode & stat.S_IRUSR:
        raise UnsafePath(f"{path.name} cannot be read: its mode is {stat.S_IMODE(status.st_mode):04o}")
    if stat.S_IMODE(status.st_mode) & ~_PRIVATE_FILE:
        # On a read-only file system it fails: others may read the file then, but not write to it.
        with suppress(OSError):
            path.chmod(_PRIVATE_FILE)
    return True


def mode_if_writable_by_others(path: Path) -> int:
    """The permissions of a regular file whose contents cannot be trusted, as others may write to it; else 0."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return 0
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) and mode & _WRITABLE_BY_OTHERS else 0


def create_private_file(path: Path) -> None:
    """Create an empty file that only its owner may read. SQLite gives the side files the same permissions.

    Raises:
        FileExistsError: another process was faster.
        OSError: it cannot be created.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _PRIVATE_FILE))


def installation_secret(folder: Path) -> bytes | None:
    """Return 32 random bytes shared by all processes that use a folder, created by the first. Reads a file.

    They go into the cache's keys. Without them, a reader of the cache could find out which API keys are in
    use by hashing candidates.

    Returns:
        None if the folder cannot be used.
    """
    path = folder / _SECRET_NAME
    with suppress(UnsafePath, OSError):
        ensure_private_folder(folder)
        for _ in range(3):
            if mode_if_writable_by_others(path):
                # Another user may have chosen its contents.
                message = (
                    f"the file {path} could be written by other users, and was replaced; "
                    "what was cached is not found any more."
                )
                CACHE.write(WARNING, "cache.replaced", message, {"path": str(path)})
                path.unlink()
            if check_private_file(path):
                secret = _read_secret(path)
                if secret is not None:
                    return secret
            _write_secret(path)
    return None


def _open_private(path: str, flags: int) -> int:
    # O_NOFOLLOW closes the gap between the check and this call, in which a link could replace the file.
    return os.open(path, flags | NO_FOLLOW, _PRIVATE_FILE)


def _read_secret(path: Path) -> bytes | None:
    with open(path, "rb", opener=_open_private) as file:
        secret = file.read(_SECRET_BYTES + 1)
    if len(secret) == _SECRET_BYTES:
        return secret
    # Truncated, or another program's file; the next attempt writes a new one.
    path.unlink(missing_ok=True)
    return None


def _write_secret(path: Path) -> None:
    """Write the file under a temporary name and link it, so that no process ever reads half of it."""
    temporary = path.with_name(f"{_SECRET_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    with open(temporary, "xb", opener=_open_private) as file:
        file.write(secrets.token_bytes(_SECRET_BYTES))
    try:
        # It fails if another process was faster; its secret is the one to use.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
