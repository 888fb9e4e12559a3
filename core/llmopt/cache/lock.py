"""One process at a time: a lock that the system takes back from whoever dies with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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
