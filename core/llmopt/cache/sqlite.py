"""One connection to one database file. It blocks, and belongs to one thread.

While SQLite is older than 3.51.3 two connections that write and copy the WAL back in the same instant can
corrupt the file (the "WAL reset bug", 3.7.0 to 3.51.2). There, whoever opens, writes, copies back or closes
holds a lock on a file beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from llmopt.cache.store import CacheItem, CacheSize

if TYPE_CHECKING:
    import sqlite3


# One process at a time: a lock that the system takes back from whoever dies with it.

_PATIENCE_S: Final = 5.0
_LONGEST_NAP_S: Final = 0.02


class Busy(Exception):
    """Somebody else holds the lock, for longer than anybody should."""


class FileLock:
    """A lock on a file of its own. It blocks the thread that waits for it.

    Args:
        path: the file, made if it is not there.
        sleep: how to wait.
        now: a clock that never goes back.
    """

    def __init__(
        self,
        path: Path,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file: int | None = os.open(path, flags, 0o600)
        self._sleep: Final = sleep
        self._now: Final = now

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it.

        Raises:
            Busy: it could not be had in five seconds; a process that was stopped may hold it for ever.
            OSError: this file system has no locks.
        """
        import fcntl

        if self._file is None:
            raise ValueError("the lock was closed")
        self._wait(self._file)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _wait(self, file: int) -> None:
        import fcntl

        until = self._now() + _PATIENCE_S
        nap = 0.0005
        while True:
            try:
                # Of the open file, not of the process: two stores in one process keep each other out too.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._now() >= until:
                    raise Busy from None
            else:
                return
            self._sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP_S)

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


# The database's own form, and how a connection to it is set up.

VERSION: Final = 1
"""Of the form of the tables; another one lives in another file."""
APPLICATION: Final = 0x6C6C6D6F
"""What SQLite's ``application_id`` says of a file of ours."""
_WAL_LIMIT: Final = 64 << 20
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


class ForeignSchemaError(Exception):
    """The file is a good database of somebody else's, or of another version of ours."""


def prepare(connection: sqlite3.Connection, *, own_checkpoints: bool) -> None:
    """Set a connection up, and make the tables where there are none.

    Args:
        connection: in autocommit mode.
        own_checkpoints: whether SQLite must not copy the WAL back by itself.

    Raises:
        ForeignSchemaError: the tables are not ours.
        sqlite3.Error: it is no database, or cannot be written.
    """
    run = connection.execute
    # First, so that what the file says cannot run anything.
    run("PRAGMA trusted_schema=OFF")
    run("PRAGMA mmap_size=0")
    _check(connection)
    # Before the first table is made, or it has no effect.
    run("PRAGMA auto_vacuum=INCREMENTAL")
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=NORMAL")
    run(f"PRAGMA journal_size_limit={_WAL_LIMIT}")
    if own_checkpoints:
        run("PRAGMA wal_autocheckpoint=0")
    if _number(connection, "user_version") == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; COMMIT;"
        )


def _check(connection: sqlite3.Connection) -> None:
    version, application = _number(connection, "user_version"), _number(connection, "application_id")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    new = version == application == tables == 0
    if not new and (version, application) != (VERSION, APPLICATION):
        raise ForeignSchemaError


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


_AT_ONCE: Final = 500
"""Keys in a statement, rows in a transaction: long enough to be cheap, short enough for others to get a turn."""
_BUSY_MS: Final = 5_000
_SAFE: Final = (3, 51, 3)
_WAL_PAGES_BYTES: Final = 4 << 20
"""The WAL is copied back when it is larger, as SQLite does by itself (1,000 pages)."""
_COALESCED_S: Final = 60
"""Use is written down at most once in so many seconds."""
_ROOM: Final = 0.95
"""Where room must be made, some more is made, so that not every write has to."""
_NEVER: Final = 1 << 53
_PUT: Final = """
INSERT INTO entries (key, family, value, until, used) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET family=excluded.family, value=excluded.value, until=excluded.until, used=excluded.used
"""
_GET: Final = "SELECT key, value, used FROM entries WHERE key IN ({})"
_USED: Final = "UPDATE entries SET used=? WHERE key=?"
_REMOVE: Final = "DELETE FROM entries WHERE key=?"
_EXPIRE: Final = (
    "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE until<? ORDER BY until LIMIT ?)"
)
_EVICT: Final = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries ORDER BY used LIMIT ?)"


class Database:
    """An open database.

    Args:
        path: the file; it and its folder were looked at.
        max_bytes: what it may take.
        wall: the calendar.
        lock: the file beside it, see above.

    Attributes:
        evicted: how many entries had to go for others.

    Raises:
        ForeignSchemaError: the file is somebody else's database.
        Busy: somebody else holds the lock.
        sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, wall: Callable[[], float], lock: Path) -> None:
        import sqlite3

        self._path: Final = path
        self._wal: Final = path.with_name(f"{path.name}-wal")
        self._most: Final = max_bytes
        self._wall: Final = wall
        self._own: Final = sqlite3.sqlite_version_info < _SAFE
        self._lock: Final = FileLock(lock) if self._own else None
        self.evicted = 0
        try:
            with self._alone():
                self._connection: Final = sqlite3.connect(
                    # A URI so that a file that went away meanwhile is not made by SQLite, with its own permissions.
                    f"{path.absolute().as_uri()}?mode=rw",
                    uri=True,
                    isolation_level=None,
                    timeout=_BUSY_MS / 1000,
                    check_same_thread=False,
                )
                self._prepare()
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise
        self.inode: Final = path.stat().st_ino

    def _prepare(self) -> None:
        # Text that somebody else put there may be no text.
        self._connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            prepare(self._connection, own_checkpoints=self._own)
        except BaseException:
            self._connection.close()
            raise

    def _alone(self) -> AbstractContextManager[None]:
        return nullcontext() if self._lock is None else self._lock.held()

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The values there are, and those of their keys whose use is worth writing down."""
        found: dict[bytes, bytes] = {}
        unmarked: list[bytes] = []
        long_ago = self._wall() - _COALESCED_S
        for some in _slices(keys):
            rows = self._connection.execute(_GET.format(",".join("?" * len(some))), some)
            for key, value, used in rows:
                # Somebody may have put another type there.
                if isinstance(value, bytes):
                    found[key] = value
                    if not isinstance(used, int) or used < long_ago:
                        unmarked.append(key)
        return found, unmarked

    def put(self, items: Sequence[CacheItem]) -> None:
        """Keep some, and make room if need be."""
        now = int(self._wall())
        rows = [(item.key, item.group, item.value, int(min(item.expires_at, _NEVER)), now) for item in items]
        with self._writing() as connection:
            connection.executemany(_PUT, rows)
        self._make_room()

    def used(self, keys: Iterable[bytes]) -> None:
        """Write down that these were used just now."""
        now = int(self._wall())
        with self._writing() as connection:
            connection.executemany(_USED, [(now, key) for key in keys])

    def remove(self, keys: Iterable[bytes]) -> None:
        """Let some go."""
        with self._writing() as connection:
            connection.executemany(_REMOVE, [(key,) for key in keys])

    def clear(self, group: str | None) -> None:
        """Let a group go, or everything, and give the space back."""
        with self._writing() as connection:
            if group is None:
                connection.execute("DELETE FROM entries")
            else:
                connection.execute("DELETE FROM entries WHERE family=?", (group,))
        with self._alone():
            # It works while its rows are fetched.
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def expire(self) -> None:
        """Let some of those go that are of no use to anybody any more."""
        with self._writing() as connection:
            connection.execute(_EXPIRE, (int(self._wall()), _AT_ONCE))

    def size(self) -> CacheSize:
        """How much there is, by the indices alone."""
        rows = self._connection.execute("SELECT family, count(*) FROM entries GROUP BY family").fetchall()
        groups = {str(group): int(count) for group, count in rows}
        return CacheSize(
            entries=sum(groups.values()),
            bytes=self._bytes(),
            max_bytes=self._most,
            evicted=self.evicted,
            groups=groups,
        )

    def moved(self) -> bool:
        """Whether the file under the name is another one by now."""
        try:
            return self._path.stat().st_ino != self.inode
        except OSError:
            return True

    def close(self) -> None:
        """Let it go. SQLite copies the WAL back if nobody else has the file open."""
        try:
            with self._alone():
                self._connection.close()
        finally:
            self._connection.close()
            if self._lock is not None:
                self._lock.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, begun as a writer's: one that began by reading fails when it comes to write."""
        connection = self._connection
        with self._alone():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if self._own and _length(self._wal) > _WAL_PAGES_BYTES:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _bytes(self) -> int:
        pages, free, each = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * each

    def _make_room(self) -> None:
        if self._bytes() <= self._most:
            return
        self.expire()
        while self._bytes() > self._most * _ROOM:
            with self._writing() as connection:
                gone = connection.execute(_EVICT, (_AT_ONCE,)).rowcount
            self.evicted += gone
            if gone <= 0:
                return


def _slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# What an error of SQLite's means for the store. Pure.

Trouble = Literal["broken", "moved", "busy", "full", "closed"]
"""The file holds no database; it is not the one under its name any more; somebody else is writing; nothing
can be written for now; nothing can be read either."""
_BY_CODE: Final[dict[int, Trouble]] = {
    5: "busy",  # BUSY
    6: "busy",  # LOCKED
    8: "full",  # READONLY
    10: "full",  # IOERR
    11: "broken",  # CORRUPT
    13: "full",  # FULL
    14: "closed",  # CANTOPEN
    18: "busy",  # TOOBIG
    15: "busy",  # PROTOCOL: a race for the WAL's locks, lost several times over
    26: "broken",  # NOTADB
}
"""Primary result codes, https://www.sqlite.org/rescode.html"""
_MOVED: Final = 8 | 4 << 8  # READONLY_DBMOVED
_SHORT_READ: Final = 10 | 2 << 8  # IOERR_SHORT_READ: the file ends before a page does
_BROKEN_SHAPES: Final = ("malformed", "no such table", "no such column", "no column named")


def classify_sqlite_error(error: sqlite3.Error) -> Trouble:
    """What to do about an error."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == _MOVED:
        return "moved"
    if code == _SHORT_READ:
        return "broken"
    if isinstance(code, int) and code & 0xFF in _BY_CODE:
        return _BY_CODE[code & 0xFF]
    # A plain ERROR: the schema is not what the file's version says it is.
    return "broken" if any(shape in str(error) for shape in _BROKEN_SHAPES) else "closed"
