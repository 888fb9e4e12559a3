"""What the thread of a store on disk does, fault by fault. It blocks."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from llmopt.cache.database import Database
from llmopt.cache.files import CacheFiles
from llmopt.cache.lock import Busy
from llmopt.cache.pending import Pending
from llmopt.cache.places import Refused
from llmopt.cache.store import CacheSize
from llmopt.cache.trouble import trouble_of
from llmopt.policies.store_health import StoreHealth

T = TypeVar("T")

_log: Final = logging.getLogger("llmopt")
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
        trouble = trouble_of(error)
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
