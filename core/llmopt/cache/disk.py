"""A store on disk: SQLite in a thread of its own.

No fault of it is ever a fault of a call: what cannot be read is a miss, what cannot be written is not
kept. A file that is broken is put aside and begun anew; a full disk is left alone for a minute.

A connection must not be open while the process forks. SQLite keeps a list of files in memory, by which a
connection made in the child believes that its process has the locks already that are the parent's: it
holds none, and the parent may delete the WAL under it (seen in /proc/locks with 3.40). So the
thread ends and the connection is closed before a fork, and each side opens its own when it needs one. In
a child of a fork that Python was not told of the store stays closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from llmopt.cache.files import CacheFiles, Refused
from llmopt.cache.sqlite import Busy, Database, classify_sqlite_error
from llmopt.cache.store import CacheItem, CacheSize, LRUCache, notify_on_fork

# What is still to be written: bounded, and the oldest is dropped where there is too much.

_MOST_BYTES: Final = 64 << 20
_MOST_MARKS: Final = 100_000


class Pending:
    """Filled by anybody, emptied by the thread that writes. A key stands in it once, with its newest value."""

    def __init__(self) -> None:
        self._items: Final = LRUCache[bytes, CacheItem](_MOST_BYTES, lambda item: len(item.value))
        self._used: set[bytes] = set()
        self._claimed = False
        self._lock: Final = threading.Lock()

    def __bool__(self) -> bool:
        return bool(len(self._items) or self._used)

    def add(self, items: Iterable[CacheItem]) -> None:
        """These are to be written."""
        with self._lock:
            for item in items:
                self._items.put(item.key, item)

    def look(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of these keys that are still to be written."""
        if not len(self._items):
            return {}
        with self._lock:
            found = ((key, self._items.get(key)) for key in keys)
            return {key: item.value for key, item in found if item is not None}

    def mark(self, keys: Sequence[bytes]) -> None:
        """These were used, which is to be written down."""
        with self._lock:
            if len(self._used) < _MOST_MARKS:
                self._used.update(keys)

    def drop(self, unwanted: Callable[[CacheItem], bool]) -> None:
        """Some need not be written any more."""
        with self._lock:
            for key in [key for key, item in self._items.items() if unwanted(item)]:
                self._items.remove(key)

    def take(self, most: int) -> tuple[list[CacheItem], list[bytes]]:
        """The oldest, at most so many, and what was used."""
        with self._lock:
            keys = [key for (key, _), _ in zip(self._items.items(), range(most), strict=False)]
            taken = [item for key in keys if (item := self._items.remove(key)) is not None]
            used, self._used = [*self._used], set()
            return taken, used

    def claim(self) -> bool:
        """Whether there is something to write and nobody does it yet; then the caller has to."""
        with self._lock:
            if self._claimed or not self:
                return False
            self._claimed = True
            return True

    def settle(self, *, stop: bool = False) -> bool:
        """Some was written; whether there is more, which whoever claimed it still has to write."""
        with self._lock:
            self._claimed = bool(self) and not stop
            return self._claimed


T = TypeVar("T")
_log: Final = logging.getLogger("llmopt")
MOST_BYTES: Final = 1 << 30
_PATIENCE_S: Final = 2.0
"""A fork waits so long for the thread to come to rest."""


class DiskStore:
    """Keeps bytes in one SQLite file, for any number of processes at once.

    Nothing is opened before it is needed. It can be used from several event loops and threads; a client
    that was given one does not close it.

    Args:
        folder: where the file is; made, readable for its owner alone, if it is not there. By default the
            user's cache folder.
        max_bytes: what the file may take; what was not used for the longest time goes first.
        wall: the calendar, for tests.
        now: a clock that never goes back, for tests.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = MOST_BYTES,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder: Final = cache_folder(folder)
        self._max_bytes: Final = max_bytes
        self._wall: Final = wall
        self._now: Final = now
        self._gate = threading.Lock()
        self._pending = Pending()
        self._thread: _Thread | None = None
        self._pid = os.getpid()
        self._abandoned: _Thread | None = None
        notify_on_fork(self)

    def __repr__(self) -> str:
        return f"DiskStore({str(self.folder)!r})"

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        if not keys:
            return []
        nothing: dict[bytes, bytes] = {}
        found = await self._ask(lambda keeper: keeper.read(keys), nothing)
        self._see_to_writing()
        return [found.get(key) for key in keys]

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`; written a moment later."""
        with self._gate:
            if self._running() is None:
                return
            self._pending.add(items)
        self._see_to_writing()

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        unwanted = set(keys)
        with self._gate:
            self._pending.drop(lambda item: item.key in unwanted)
        await self._ask(lambda keeper: keeper.remove(keys), None)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        with self._gate:
            self._pending.drop(lambda item: group in (None, item.group))
        await self._ask(lambda keeper: keeper.clear(group), None)

    async def size(self) -> CacheSize:
        """See `CacheStore.size`."""
        return await self._ask(lambda keeper: keeper.size(), CacheSize(max_bytes=self._max_bytes))

    async def aclose(self) -> None:
        """Write what is still to be written, close the file and end the thread."""
        with self._gate:
            idle = self._thread is None and not self._pending
        if idle:
            return
        try:
            await self._ask(lambda keeper: keeper.finish(), None)
        finally:
            with self._gate:
                thread, self._thread = self._thread, None
            if thread is not None:
                thread.end()

    async def _ask(self, act: Callable[[Keeper], T], otherwise: T) -> T:
        with self._gate:
            thread = self._running()
            if thread is None:
                return otherwise
            loop = asyncio.get_running_loop()
            try:
                # Through the loop, so that simulated time knows of it.
                future = loop.run_in_executor(thread.pool, act, thread.keeper)
            except RuntimeError:
                # The interpreter is ending and starts nothing any more; the thread has ended.
                return act(thread.keeper)
        return await future

    def _see_to_writing(self) -> None:
        with self._gate:
            thread = self._running() if self._pending else None
            if thread is not None and self._pending.claim():
                thread.write()

    def _running(self) -> _Thread | None:
        """The thread, started when first needed; None in a child that was not told that it is one."""
        if self._pid != os.getpid():
            # Kept, not closed: its files are the parent's.
            self._abandoned, self._thread = self._abandoned or self._thread, None
            self._pid = os.getpid()
        if self._abandoned is not None:
            return None
        if self._thread is None:
            # No finalizer ends it: it would have to take locks, and the collector may run while they are held.
            # A thread whose store is gone ends by itself.
            self._thread = self._start()
        return self._thread

    def _start(self) -> _Thread:
        from llmopt.cache.files import CacheFiles

        files = CacheFiles(self.folder, max_bytes=self._max_bytes, wall=self._wall)
        return _Thread(Keeper(files, self._pending, self._now))

    def before_fork(self) -> None:
        """Close the connection and end the thread; see above."""
        self._gate.acquire()
        thread, self._thread = self._thread, None
        if thread is not None and not thread.rest(_PATIENCE_S):
            self._abandoned = thread

    def after_fork_in_parent(self) -> None:
        """Go on; a thread starts again when there is something to do."""
        self._abandoned = None
        self._gate.release()
        self._see_to_writing()

    def after_fork_in_child(self) -> None:
        """Begin anew. What was to be written is written by the parent."""
        self._gate = threading.Lock()
        self._pending = Pending()


class _Thread:
    """One thread and what it works on."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper: Final = keeper
        self.pool: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llmopt-cache")

    def write(self) -> None:
        """Have the thread write, in turn with those who read."""
        # At the interpreter's end no more is written.
        with suppress(RuntimeError):
            self.pool.submit(self._write)

    def _write(self) -> None:
        try:
            more = self.keeper.flush()
        except Exception:  # noqa: BLE001 - nobody waits for it
            _log.exception("writing to the cache failed in a way that nobody foresaw")
            return
        if more:
            self.write()

    def rest(self, seconds: float) -> bool:
        """Close the connection and end the thread; whether it did in time."""
        try:
            self.pool.submit(self.keeper.retire).result(seconds)
        except (FutureTimeout, RuntimeError):
            return False
        self.pool.shutdown()
        return True

    def end(self) -> None:
        """The same without waiting."""
        with suppress(RuntimeError):
            self.pool.submit(self.keeper.retire)
        self.pool.shutdown(wait=False)


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """The folder that is meant: the one given, or the user's cache folder."""
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_dir("llmopt", appauthor=False)
    return Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111 - Path.expanduser raises


# When a store that failed is tried again. Pure: the clock is handed in.

_REST_S: Final = 60.0


class StoreHealth:
    """What a store on disk may do now.

    Args:
        now: a clock that never goes back.
        rest_s: how long is not tried what failed.
    """

    def __init__(self, now: Callable[[], float], rest_s: float = _REST_S) -> None:
        self._now: Final = now
        self._rest_s: Final = rest_s
        self._no_writes_until = self._nothing_until = float("-inf")

    @property
    def may_read(self) -> bool:
        """Whether it may be opened and read."""
        return self._now() >= self._nothing_until

    @property
    def may_write(self) -> bool:
        """Whether it may be written to."""
        return self.may_read and self._now() >= self._no_writes_until

    def cannot_write(self) -> None:
        """A write failed for a cause that lasts, such as a full disk."""
        self._no_writes_until = self._now() + self._rest_s

    def cannot_open(self) -> None:
        """It could not be opened, or not be read."""
        self._nothing_until = self._now() + self._rest_s


# What the thread of a store on disk does, fault by fault. It blocks.

_ROWS: Final = 500
"""In one transaction: after it those who read get their turn."""
_CLEANING_S: Final = 3600.0


class Keeper:
    """Reads and writes, opens and mends.

    Args:
        files: where.
        pending: what is to be written.
        now: a clock that never goes back.
    """

    def __init__(
        self, files: CacheFiles, pending: Pending, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._files: Final = files
        self._pending: Final = pending
        self._now: Final = now
        self._health: Final = StoreHealth(now)
        self._database: Database | None = None
        self._retired = False
        self._cleaned = float("-inf")
        self._warned: set[str] = set()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values there are, those that are still to be written among them."""
        nothing: tuple[dict[bytes, bytes], list[bytes]] = ({}, [])
        found, unmarked = self._do(lambda database: database.get(keys), nothing)
        if unmarked:
            self._pending.mark(unmarked)
        found.update(self._pending.look(keys))
        return found

    def flush(self) -> bool:
        """Write some of what is to be written; whether there is more for this thread to write."""
        if self._retired:
            return self._pending.settle(stop=True)
        items, used = self._pending.take(_ROWS)

        def write(database: Database) -> None:
            if items:
                database.put(items)
            for start in range(0, len(used), _ROWS):
                database.used(used[start : start + _ROWS])
            self._clean(database)

        try:
            self._do(write, None, writing=True)
        except BaseException:
            self._pending.settle(stop=True)
            raise
        return self._pending.settle()

    def remove(self, keys: Sequence[bytes]) -> None:
        """Let some go."""
        self._do(lambda database: database.remove(keys), None, writing=True)

    def clear(self, group: str | None) -> None:
        """Let a group go, or everything."""
        self._do(lambda database: database.clear(group), None, writing=True)

    def size(self) -> CacheSize:
        """How much there is, when all is written."""
        while self.flush():
            pass
        return self._do(lambda database: database.size(), CacheSize())

    def finish(self) -> None:
        """Write all there is, and retire."""
        while self.flush():
            pass
        self.retire()

    def retire(self) -> None:
        """Let the connection go, and never open another one: whoever comes next has a thread of its own."""
        self._retired = True
        self._close()

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except (sqlite3.Error, OSError, Busy) as error:
                _log.debug("closing the cache: %s", error)

    def _clean(self, database: Database) -> None:
        if self._now() >= self._cleaned + _CLEANING_S:
            self._cleaned = self._now()
            database.expire()

    def _do(self, act: Callable[[Database], T], otherwise: T, *, writing: bool = False) -> T:
        if self._retired or not (self._health.may_write if writing else self._health.may_read):
            return otherwise
        try:
            return act(self._open())
        except sqlite3.Error as error:
            self._mend(error)
        except Busy:
            _log.debug("the cache is held by another process; this once it goes without.")
        except (Refused, OSError) as error:
            self._closed(str(error))
        return otherwise

    def _open(self) -> Database:
        if self._database is not None and self._database.moved():
            # Somebody put it aside, or cleared the folder.
            self._close()
        if self._database is None:
            self._database = self._files.open()
        return self._database

    def _mend(self, error: sqlite3.Error) -> None:
        trouble = classify_sqlite_error(error)
        if trouble == "busy":
            _log.debug("the cache is busy (%s); this once it goes without.", error)
        elif trouble == "full":
            self._warn("full", f"cannot be written to for now ({error}); tried again in a minute")
            self._health.cannot_write()
        elif trouble == "broken" and self._database is not None:
            inode = self._database.inode
            self._close()
            self._put_aside(inode)
        elif trouble == "moved":
            self._close()
        else:
            self._closed(str(error))

    def _put_aside(self, inode: int) -> None:
        try:
            self._files.set_aside(self._files.path, inode)
        except (OSError, Busy) as error:
            self._closed(str(error))

    def _closed(self, why: str) -> None:
        self._close()
        self._warn("closed", f"cannot be used ({why}); nothing is kept on disk for now")
        self._health.cannot_open()

    def _warn(self, what: str, text: str) -> None:
        # Once: what stays wrong for an hour need not be said sixty times.
        if what not in self._warned:
            self._warned.add(what)
            _log.warning("the cache in %s %s.", self._files.folder, text)
