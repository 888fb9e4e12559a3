"""The cache store on disk: an SQLite file that any number of processes share, used from a thread of its own.

A fault of the disk is never a fault of a call: what cannot be read is a miss, what cannot be written is not
cached. A corrupt file is renamed and replaced; after a lasting fault, such as a full disk, the store is left
alone for a minute.

No connection may be open while the process forks. SQLite keeps its POSIX locks in a list in memory; a child that
inherits the list believes that it holds the locks, which the system has given to the parent alone, and the
parent may then delete the WAL that the child is using (https://www.sqlite.org/howtocorrupt.html, section 2.7).
So the connection is closed and the thread ended before a fork, and each side opens its own when it needs one.
In the child of a fork outside `os.fork`, by a C extension, the store stays empty.

Files are accessed on that thread only (but in the caller's while the interpreter exits), and callers await it; it is
started at first use. `put` returns before anything is written. The default folder depends on the environment. A lock
guards the buffer and the worker, so that event loops in several threads may share a store. Both clocks are passed in,
by default the system's. Faults go to the log.
"""

from __future__ import annotations

import asyncio
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

from llmopt._platform import has_private_files
from llmopt.cache.files import CacheFiles, UnsafePath
from llmopt.cache.sqlite import Database, LockTimeout, classify_sqlite_error
from llmopt.cache.store import CacheItem, CacheSize, LRUCache, notify_on_fork
from llmopt.log import CACHE, DEBUG, INFO, WARNING

T = TypeVar("T")
MAX_DISK_BYTES: Final = 1 << 30
# What waits to be written, in memory. When the disk is slower than the callers, the oldest is dropped.
_MAX_BUFFER_BYTES: Final = 64 << 20
_MAX_BUFFERED_USES: Final = 100_000
# Rows in one transaction; after it the reads that are waiting get their turn.
_BATCH_ROWS: Final = 500
_RETRY_AFTER_S: Final = 60.0
_EXPIRY_INTERVAL_S: Final = 3600.0
# A fork waits this long for the thread; a slower one leaves the child without the store.
_FORK_TIMEOUT_S: Final = 2.0


class DiskStore:
    """A cache store in one SQLite file, for any number of processes at once.

    Nothing is opened before it is needed. It can be used from several event loops and threads; a client
    that was given one does not close it.

    Args:
        folder: where the file is; created, readable by its owner alone, if it does not exist. By default the
            user's cache folder.
        max_bytes: limit of the file; the least recently used entries are evicted first.
        wall: the calendar in seconds since 1970, for tests.
        now: a monotonic clock in seconds, for tests.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = MAX_DISK_BYTES,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder: Final = cache_folder(folder)
        self._max_bytes: Final = max_bytes
        self._wall: Final = wall
        self._now: Final = now
        self._lock = threading.Lock()
        self._buffer = WriteBuffer()
        self._worker: DiskWorker | None = None
        self._pid = os.getpid()
        # A worker that a fork could not stop. It must not be collected here: that would close the parent's files.
        self._abandoned: DiskWorker | None = None
        notify_on_fork(self)

    def __repr__(self) -> str:
        return f"DiskStore({str(self.folder)!r})"

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `CacheStore.get`."""
        if not keys:
            return []
        empty: dict[bytes, bytes] = {}
        values = await self._run(lambda worker: worker.read(keys), empty)
        self._schedule_writes()
        return [values.get(key) for key in keys]

    async def put(self, items: Sequence[CacheItem]) -> None:
        """See `CacheStore.put`; written a moment later, by the thread."""
        with self._lock:
            if self._current_worker() is None:
                return
            self._buffer.add(items)
        self._schedule_writes()

    async def remove(self, keys: Sequence[bytes]) -> None:
        """See `CacheStore.remove`."""
        # The buffer too, or a write that is still waiting would bring the entry back.
        removed = set(keys)
        with self._lock:
            self._buffer.discard(lambda item: item.key in removed)
        await self._run(lambda worker: worker.write(lambda database: database.remove(keys)), None)

    async def clear(self, group: str | None = None) -> None:
        """See `CacheStore.clear`."""
        with self._lock:
            self._buffer.discard(lambda item: group in (None, item.group))
        await self._run(lambda worker: worker.write(lambda database: database.clear(group)), None)

    async def size(self) -> CacheSize:
        """See `CacheStore.size`; what is buffered is written first."""
        return await self._run(lambda worker: worker.size(), CacheSize(max_bytes=self._max_bytes))

    async def aclose(self) -> None:
        """Write what is buffered, close the file and end the thread."""
        with self._lock:
            idle = self._worker is None and not self._buffer
        if idle:
            return
        try:
            await self._run(lambda worker: worker.flush_all(), None)
        finally:
            with self._lock:
                worker, self._worker = self._worker, None
            if worker is not None:
                worker.shutdown()

    async def _run(self, operation: Callable[[DiskWorker], T], default: T) -> T:
        with self._lock:
            worker = self._current_worker()
            if worker is None:
                return default
            try:
                # Through the loop, so that simulated time stands still meanwhile.
                future = asyncio.get_running_loop().run_in_executor(worker.executor, operation, worker)
            except RuntimeError:
                # The interpreter is shutting down: the thread has ended, and no other can be started.
                return operation(worker)
        return await future

    def _schedule_writes(self) -> None:
        with self._lock:
            worker = self._current_worker() if self._buffer else None
            if worker is not None and self._buffer.start_flush():
                worker.schedule_flush()

    def _current_worker(self) -> DiskWorker | None:
        """The worker, started when first needed; None in the child of a fork by a C extension."""
        if self._pid != os.getpid():
            self._abandoned, self._worker = self._abandoned or self._worker, None
            self._pid = os.getpid()
        if self._abandoned is not None:
            return None
        if self._worker is None:
            # No finalizer ends it: that would need locks, and the garbage collector may run while they are held.
            # An executor ends its thread by itself when it is collected.
            files = CacheFiles(self.folder, max_bytes=self._max_bytes, wall=self._wall)
            self._worker = DiskWorker(files, self._buffer, self._now)
        return self._worker

    def before_fork(self) -> None:
        """Close the connection and end the thread; see the module's docstring."""
        self._lock.acquire()
        worker, self._worker = self._worker, None
        if worker is not None and not worker.stop(_FORK_TIMEOUT_S):
            self._abandoned = worker

    def after_fork_in_parent(self) -> None:
        """Go on with a new thread, started when there is something to do."""
        self._abandoned = None
        self._lock.release()
        self._schedule_writes()

    def after_fork_in_child(self) -> None:
        """Start with an empty buffer: the parent writes what was in it."""
        self._lock = threading.Lock()
        self._buffer = WriteBuffer()


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """The absolute path of a folder, by default of the user's cache folder."""
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_dir("llmopt", appauthor=False)
    # Not Path.expanduser, which raises for a user that does not exist.
    return Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111


class DiskWorker:
    """One thread with the connection to the database. All methods but `schedule_flush` and `stop` run on it.

    Args:
        files: where the database is.
        buffer: what is to be written.
        now: a monotonic clock, in seconds.

    Attributes:
        executor: runs the thread.
    """

    def __init__(self, files: CacheFiles, buffer: WriteBuffer, now: Callable[[], float]) -> None:
        self.executor: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llmopt-cache")
        self._files: Final = files
        self._buffer: Final = buffer
        self._now: Final = now
        self._database: Database | None = None
        self._stopped = False
        self._no_reads_until = self._no_writes_until = self._next_expiry = float("-inf")
        self._warned: set[str] = set()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values that are stored or buffered."""
        none: tuple[dict[bytes, bytes], list[bytes]] = ({}, [])
        values, outdated = self._access(lambda database: database.get(keys), none)
        if outdated:
            self._buffer.mark_used(outdated)
        # After the database, because the buffer has the newer values.
        values.update(self._buffer.get(keys))
        return values

    def write(self, operation: Callable[[Database], None]) -> None:
        """Change the database, unless a lasting fault was met within the last minute."""
        if self._now() >= self._no_writes_until:
            self._access(operation, None)

    def size(self) -> CacheSize:
        """Write all that is buffered and return how much is stored."""
        while self._flush():
            pass
        return self._access(lambda database: database.size(), CacheSize())

    def flush_all(self) -> None:
        """Write all that is buffered and close the connection for good."""
        while self._flush():
            pass
        self.retire()

    def schedule_flush(self) -> None:
        """Write one batch behind the operations that are already queued, then the next, until all is written."""
        # RuntimeError: the interpreter is shutting down.
        with suppress(RuntimeError):
            self.executor.submit(self._flush_and_continue)

    def stop(self, timeout_s: float) -> bool:
        """Close the connection and end the thread; return whether it ended in time."""
        try:
            self.executor.submit(self.retire).result(timeout_s)
        except (FutureTimeout, RuntimeError):
            return False
        self.executor.shutdown()
        return True

    def shutdown(self) -> None:
        """Like `stop`, without waiting."""
        with suppress(RuntimeError):
            self.executor.submit(self.retire)
        self.executor.shutdown(wait=False)

    def retire(self) -> None:
        """Close the connection and never open another: later operations belong to the next worker."""
        self._stopped = True
        self._close()

    def _flush_and_continue(self) -> None:
        try:
            more = self._flush()
        except Exception:  # noqa: BLE001 - nobody awaits this future, so the error would be lost
            message = "an unexpected error occurred while writing to the disk cache"
            CACHE.write(WARNING, "cache.failed", message, {"exc_info": True})
            return
        if more:
            self.schedule_flush()

    def _flush(self) -> bool:
        """Write one batch; return whether this thread has to write more."""
        if self._stopped:
            return self._buffer.end_batch(stop=True)
        items, used = self._buffer.pop_batch(_BATCH_ROWS)

        def write(database: Database) -> None:
            if items:
                database.put(items)
            for start in range(0, len(used), _BATCH_ROWS):
                database.mark_used(used[start : start + _BATCH_ROWS])
            if self._now() >= self._next_expiry:
                self._next_expiry = self._now() + _EXPIRY_INTERVAL_S
                database.delete_expired()

        try:
            self.write(write)
        except BaseException:
            self._buffer.end_batch(stop=True)
            raise
        return self._buffer.end_batch()

    def _access(self, operation: Callable[[Database], T], default: T) -> T:
        if self._stopped or self._now() < self._no_reads_until:
            return default
        try:
            return operation(self._open())
        except sqlite3.Error as error:
            self._recover(error)
        except LockTimeout:
            message = "another process holds the lock of the disk cache; this operation is skipped"
            CACHE.write(DEBUG, "cache.busy", message)
        except (UnsafePath, OSError) as error:
            self._suspend(str(error))
        return default

    def _open(self) -> Database:
        if self._database is not None and self._database.is_replaced():
            # Another process renamed a corrupt file, or a user emptied the folder.
            self._close()
        if self._database is None:
            self._database = self._files.open()
        return self._database

    def _recover(self, error: sqlite3.Error) -> None:
        problem = classify_sqlite_error(error)
        if problem == "busy":
            CACHE.write(DEBUG, "cache.busy", f"the disk cache is busy ({error}); this operation is skipped")
        elif problem == "unwritable":
            self._warn(problem, f"cannot be written ({error}); writing is tried again in a minute")
            self._no_writes_until = self._now() + _RETRY_AFTER_S
        elif problem == "corrupt" and self._database is not None:
            inode = self._database.inode
            self._close()
            try:
                self._files.quarantine(self._files.path, inode)
            except (OSError, LockTimeout) as failure:
                self._suspend(str(failure))
        elif problem == "replaced":
            self._close()
        else:
            self._suspend(str(error))

    def _suspend(self, reason: str) -> None:
        self._close()
        self._warn("unusable", f"cannot be used ({reason}); nothing is cached on disk for now")
        self._no_reads_until = self._now() + _RETRY_AFTER_S

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except (sqlite3.Error, OSError, LockTimeout) as error:
                CACHE.write(DEBUG, "cache.not_closed", f"the disk cache could not be closed: {error}")

    def _warn(self, problem: str, text: str) -> None:
        # Once for each problem, although it is met again every minute while it lasts.
        if problem not in self._warned:
            self._warned.add(problem)
            # A system that cannot have a disk cache is no incident; every run would begin with this line.
            level = WARNING if has_private_files() else INFO
            folder = str(self._files.folder)
            message = f"the disk cache in {folder} {text}."
            CACHE.write(level, f"cache.{problem}", message, {"folder": folder})


class WriteBuffer:
    """Entries and uses that are still to be written; bounded, and with one writer at a time. Thread-safe.

    Any thread adds; the worker's thread takes. A key is in it once, with its newest value.
    """

    def __init__(self) -> None:
        self._items: Final = LRUCache[bytes, CacheItem](_MAX_BUFFER_BYTES, lambda item: len(item.value))
        self._used: set[bytes] = set()
        self._flushing = False
        self._lock: Final = threading.Lock()

    def __bool__(self) -> bool:
        return bool(len(self._items) or self._used)

    def add(self, items: Iterable[CacheItem]) -> None:
        """Add entries to write."""
        with self._lock:
            for item in items:
                self._items.put(item.key, item)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that are still to be written."""
        # Without the lock: a look at the length cannot see a half-made change, and most reads end here.
        if not len(self._items):
            return {}
        with self._lock:
            items = ((key, self._items.get(key)) for key in keys)
            return {key: item.value for key, item in items if item is not None}

    def mark_used(self, keys: Sequence[bytes]) -> None:
        """Add keys whose time of last use is to be written."""
        with self._lock:
            # Losing a time of use costs at most an early eviction.
            if len(self._used) < _MAX_BUFFERED_USES:
                self._used.update(keys)

    def discard(self, unwanted: Callable[[CacheItem], bool]) -> None:
        """Drop entries that need not be written any more."""
        with self._lock:
            for key in [key for key, item in self._items.items() if unwanted(item)]:
                self._items.remove(key)

    def pop_batch(self, max_items: int) -> tuple[list[CacheItem], list[bytes]]:
        """Remove and return the oldest entries, and all keys that were used."""
        with self._lock:
            keys = [key for (key, _), _ in zip(self._items.items(), range(max_items), strict=False)]
            items = [item for key in keys if (item := self._items.remove(key)) is not None]
            used, self._used = [*self._used], set()
            return items, used

    def start_flush(self) -> bool:
        """Return whether the caller has to start writing: there is something to write and no writer yet."""
        with self._lock:
            if self._flushing or not self:
                return False
            self._flushing = True
            return True

    def end_batch(self, *, stop: bool = False) -> bool:
        """Return whether the writer has to write another batch; if not, it is the writer no more."""
        with self._lock:
            # Decided under the lock: an entry added after the last batch must find either a writer or none.
            self._flushing = bool(self) and not stop
            return self._flushing
