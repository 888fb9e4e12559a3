"""The SQLite file of the cache: schema, reads and writes, eviction, and what SQLite's errors mean.

Everything here blocks and does file I/O. One thread at a time uses a `Database`, which has no lock against others; it
is that of `llmopt.cache.disk`, or the caller's while the interpreter exits. Other connections, of this process or of
others, share the file: each transaction may wait up to 5 seconds for them in SQLite, and up to 5 more for the
`file_lock` where that is used (see below). The wall clock is passed in; the lock sleeps and reads the system's monotonic clock.

SQLite 3.7.0 to 3.51.2 can corrupt a database when two connections write and checkpoint the WAL in the same
instant (the WAL-reset bug, https://www.sqlite.org/wal.html). With these versions every connection holds a lock
on a file beside the database while it opens, writes, checkpoints or closes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from llmopt._platform import NO_FOLLOW, try_lock, unlock
from llmopt.cache.store import CacheItem, CacheSize

if TYPE_CHECKING:
    import sqlite3

SCHEMA_VERSION: Final = 1
"""Version of the tables. It is part of the file's name, so that two versions never share a file."""
APPLICATION_ID: Final = 0x6C6C6D6F
"""SQLite's ``application_id`` of our files ("llmo")."""
_WAL_RESET_BUG_FIXED: Final = (3, 51, 3)
# Keys in a statement and rows in a transaction: enough to be cheap, few enough that others get their turn.
_BATCH_SIZE: Final = 500
_BUSY_TIMEOUT_S: Final = 5.0
# 1,000 pages, the size at which SQLite's own automatic checkpoint would run.
_CHECKPOINT_BYTES: Final = 4 << 20
_MAX_WAL_BYTES: Final = 64 << 20
# The time of last use is written at most this often, so that reading hardly ever writes.
_USED_RESOLUTION_S: Final = 60
# Evict to a little below the limit, so that the next write does not have to evict again.
_EVICTION_TARGET: Final = 0.95
# The largest expiry stored: an entry that never expires has infinity, which is no integer.
_MAX_EXPIRY: Final = 1 << 53
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS entries (
  key BLOB PRIMARY KEY NOT NULL,
  family TEXT NOT NULL,
  value BLOB NOT NULL,
  until INTEGER NOT NULL,
  used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_family ON entries (family);
CREATE INDEX IF NOT EXISTS by_until ON entries (until);
CREATE INDEX IF NOT EXISTS by_used ON entries (used);
"""
_PUT: Final = """
INSERT INTO entries (key, family, value, until, used) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET family=excluded.family, value=excluded.value, until=excluded.until, used=excluded.used
"""
_GET: Final = "SELECT key, value, used FROM entries WHERE key IN ({})"
_MARK_USED: Final = "UPDATE entries SET used=? WHERE key=?"
_REMOVE: Final = "DELETE FROM entries WHERE key=?"
_DELETE_EXPIRED: Final = (
    "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE until<? ORDER BY until LIMIT ?)"
)
_EVICT: Final = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries ORDER BY used LIMIT ?)"


class ForeignSchemaError(Exception):
    """The file is an intact database of another program or of another version of llmopt."""


class Database:
    """An open connection to one database file.

    Args:
        path: the file. It and its folder were checked to be private (`llmopt.cache.files`).
        max_bytes: the size above which entries are evicted.
        wall: the calendar, in seconds since 1970.
        lock: path of the lock file, see the module's docstring.

    Attributes:
        evicted: entries deleted to make room for others.
        inode: inode of the file that was opened.

    Raises:
        ForeignSchemaError: the file is another program's database.
        LockTimeout: another process holds the lock.
        sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, wall: Callable[[], float], lock: Path) -> None:
        import sqlite3

        self._path: Final = path
        self._wal: Final = path.with_name(f"{path.name}-wal")
        self._max_bytes: Final = max_bytes
        self._wall: Final = wall
        locked = sqlite3.sqlite_version_info < _WAL_RESET_BUG_FIXED
        self._lock: Final = lock if locked else None
        self.evicted = 0
        with self._locked():
            self._connection: Final = sqlite3.connect(
                # mode=rw: if the file was deleted meanwhile, SQLite must not create one with its own permissions.
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                # Autocommit: Python would otherwise begin transactions by itself, and not with IMMEDIATE.
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                # While the interpreter exits, the caller's thread works on the connection: its own has
                # ended (`llmopt.cache.disk.DiskStore`).
                check_same_thread=False,
            )
            try:
                configure(self._connection, manual_checkpoints=self._lock is not None)
                # The file may be gone by now.
                self.inode: Final = path.stat().st_ino
            except BaseException:
                self._connection.close()
                raise

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Return the values that are there, and the keys whose time of last use should be updated."""
        values: dict[bytes, bytes] = {}
        outdated: list[bytes] = []
        used_before = self._wall() - _USED_RESOLUTION_S
        # SQLite limits the variables of a statement (999 before version 3.32).
        for batch in _batches(keys):
            rows = self._connection.execute(_GET.format(",".join("?" * len(batch))), batch)
            for key, value, used in rows:
                # SQLite's columns take any type, so another program may have stored anything.
                if isinstance(value, bytes):
                    values[key] = value
                    if not isinstance(used, int) or used < used_before:
                        outdated.append(key)
        return values, outdated

    def put(self, items: Sequence[CacheItem]) -> None:
        """Store entries, then evict others if the file is too large."""
        now = int(self._wall())
        rows = [
            (item.key, item.group, item.value, int(min(item.expires_at, _MAX_EXPIRY)), now) for item in items
        ]
        with self._transaction() as connection:
            connection.executemany(_PUT, rows)
        self._evict()

    def mark_used(self, keys: Iterable[bytes]) -> None:
        """Set the time of last use of entries to now."""
        now = int(self._wall())
        with self._transaction() as connection:
            connection.executemany(_MARK_USED, [(now, key) for key in keys])

    def remove(self, keys: Iterable[bytes]) -> None:
        """Delete entries by key."""
        with self._transaction() as connection:
            connection.executemany(_REMOVE, [(key,) for key in keys])

    def clear(self, group: str | None) -> None:
        """Delete a group, or all entries, and give the space back to the file system."""
        with self._transaction() as connection:
            if group is None:
                connection.execute("DELETE FROM entries")
            else:
                connection.execute("DELETE FROM entries WHERE family=?", (group,))
        with self._locked():
            # fetchall, because the pragma frees one page for each row that is fetched.
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def delete_expired(self) -> None:
        """Delete some entries that have expired."""
        with self._transaction() as connection:
            connection.execute(_DELETE_EXPIRED, (int(self._wall()), _BATCH_SIZE))

    def size(self) -> CacheSize:
        """Return how much is stored. Only an index is read, not the values."""
        rows = self._connection.execute("SELECT family, count(*) FROM entries GROUP BY family").fetchall()
        groups = {str(group): int(count) for group, count in rows}
        return CacheSize(
            entries=sum(groups.values()),
            bytes=self._bytes_in_use(),
            max_bytes=self._max_bytes,
            evicted=self.evicted,
            groups=groups,
        )

    def is_replaced(self) -> bool:
        """Whether the path now names another file, or none."""
        try:
            return self._path.stat().st_ino != self.inode
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection; the last one to close checkpoints the WAL."""
        try:
            with self._locked():
                self._connection.close()
        finally:
            # Again, without the lock, if that could not be had; closing twice is harmless.
            self._connection.close()

    def _locked(self) -> AbstractContextManager[None]:
        return nullcontext() if self._lock is None else file_lock(self._lock)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        with self._locked():
            # IMMEDIATE: a transaction that begins with a read fails at its first write if another wrote meanwhile.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            # OSError: there is no WAL.
            with suppress(OSError):
                if self._lock is not None and self._wal.stat().st_size > _CHECKPOINT_BYTES:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _bytes_in_use(self) -> int:
        pages, free, page_size = (
            _pragma(self._connection, name) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * page_size

    def _evict(self) -> None:
        if self._bytes_in_use() <= self._max_bytes:
            return
        # What has expired goes first; only then is anything evicted that could still be used.
        self.delete_expired()
        while self._bytes_in_use() > self._max_bytes * _EVICTION_TARGET:
            with self._transaction() as connection:
                deleted = connection.execute(_EVICT, (_BATCH_SIZE,)).rowcount
            self.evicted += deleted
            if deleted <= 0:
                return


def configure(connection: sqlite3.Connection, *, manual_checkpoints: bool) -> None:
    """Set a connection's pragmas, and create the tables in a new file.

    Args:
        connection: in autocommit mode.
        manual_checkpoints: whether to switch SQLite's automatic checkpoints off.

    Raises:
        ForeignSchemaError: the tables are not ours.
        sqlite3.Error: the file is no database, or cannot be written.
    """
    # Text that another program wrote there may not be UTF-8.
    connection.text_factory = lambda data: data.decode(errors="replace")
    run = connection.execute
    # First, so that functions named in the file's schema cannot be called.
    run("PRAGMA trusted_schema=OFF")
    # With memory mapping, a file that another process truncates kills this one with SIGBUS.
    run("PRAGMA mmap_size=0")
    _check_schema(connection)
    # Before the first table is created, or it has no effect.
    run("PRAGMA auto_vacuum=INCREMENTAL")
    run("PRAGMA journal_mode=WAL")
    # In WAL mode NORMAL loses at most the last writes at a power failure, which a cache can do without.
    run("PRAGMA synchronous=NORMAL")
    # A reader that never ends lets the WAL grow; SQLite then keeps the file at that size without a limit.
    run(f"PRAGMA journal_size_limit={_MAX_WAL_BYTES}")
    if manual_checkpoints:
        run("PRAGMA wal_autocheckpoint=0")
    if _pragma(connection, "user_version") == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id={APPLICATION_ID}; "
            f"PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )


def _check_schema(connection: sqlite3.Connection) -> None:
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    new = version == application == tables == 0
    if not new and (version, application) != (SCHEMA_VERSION, APPLICATION_ID):
        raise ForeignSchemaError


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _BATCH_SIZE] for start in range(0, len(keys), _BATCH_SIZE))


_MAX_LOCK_WAIT_S: Final = 5.0
_MAX_LOCK_POLL_S: Final = 0.02


class LockTimeout(Exception):
    """Another process has held the lock for too long; it may be stopped."""


@contextmanager
def file_lock(
    path: Path, *, sleep: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Hold a lock between processes, on a file of its own. It blocks the waiting thread.

    The system releases it when its holder dies.

    Args:
        path: the file, created if it does not exist.
        sleep: for tests.
        now: a monotonic clock, for tests.

    Raises:
        LockTimeout: it was not released within 5 seconds.
        OSError: the file system does not support locks.
    """
    # The file is never deleted: two processes could then hold locks on two files of one name.
    file = os.open(path, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o600)
    try:
        give_up_at = now() + _MAX_LOCK_WAIT_S
        pause = 0.0005
        while not try_lock(file):
            if now() >= give_up_at:
                raise LockTimeout
            sleep(pause)
            # flock with a timeout does not exist, so the lock is polled, quickly at first.
            pause = min(2 * pause, _MAX_LOCK_POLL_S)
        try:
            yield
        finally:
            # Closing alone would not release it while a forked child has the file open.
            unlock(file)
    finally:
        os.close(file)


SqliteProblem = Literal["corrupt", "replaced", "busy", "unwritable", "unusable"]
"""The file is no intact database; another file has its name; another process is writing; nothing can be
written for now; nothing can be read either."""
_BY_RESULT_CODE: Final[dict[int, SqliteProblem]] = {
    5: "busy",  # BUSY
    6: "busy",  # LOCKED
    8: "unwritable",  # READONLY
    10: "unwritable",  # IOERR
    11: "corrupt",  # CORRUPT
    13: "unwritable",  # FULL
    14: "unusable",  # CANTOPEN
    15: "busy",  # PROTOCOL: lost the race for the WAL's locks several times
    18: "busy",  # TOOBIG
    26: "corrupt",  # NOTADB
}
"""By primary result code, https://www.sqlite.org/rescode.html"""
_READONLY_DBMOVED: Final = 8 | 4 << 8
_IOERR_SHORT_READ: Final = 10 | 2 << 8
_CORRUPT_MESSAGES: Final = ("malformed", "no such table", "no such column", "no column named")


def classify_sqlite_error(error: sqlite3.Error) -> SqliteProblem:
    """Return what an error says about the database file."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == _READONLY_DBMOVED:
        return "replaced"
    if code == _IOERR_SHORT_READ:
        # The file ends in the middle of a page.
        return "corrupt"
    if isinstance(code, int) and code & 0xFF in _BY_RESULT_CODE:
        return _BY_RESULT_CODE[code & 0xFF]
    # SQLITE_ERROR has no code of its own for a schema that is not what the file's version says.
    return "corrupt" if any(text in str(error) for text in _CORRUPT_MESSAGES) else "unusable"
