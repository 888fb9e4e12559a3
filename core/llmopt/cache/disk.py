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
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from llmopt.cache.forks import watch_forks
from llmopt.cache.pending import Pending
from llmopt.cache.store import CacheItem, CacheSize

if TYPE_CHECKING:
    from llmopt.cache.keeper import Keeper

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
        watch_forks(self)

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
        return await self._ask(lambda keeper: keeper.size(), CacheSize(most=self._max_bytes))

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
        from llmopt.cache.keeper import Keeper

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
