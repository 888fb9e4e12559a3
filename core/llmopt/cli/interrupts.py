"""Ctrl-C, kept away from the few moments in which a file is being written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Turns the signals that end a program into `KeyboardInterrupt`, except where they are held.

    Use it in ``with``, in the main thread. A signal that the process was told to ignore, as by
    ``nohup``, is still ignored.
    """

    def __init__(self) -> None:
        self._former: Final[dict[int, Any]] = {}
        self._held = False
        self._waiting = False

    def __enter__(self) -> Self:
        for name in _SIGNALS:
            # There is no SIGHUP on Windows.
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _handle(self, *_: object) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._waiting = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the end of the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Let no signal through any more: what was earned is being saved, and then it ends anyway."""
        self._held = True
