"""Progress bar of ``llmopt embed``, and signals that wait while a file is written.

The bar is drawn on standard error, by a thread of rich; events update it on the client's thread, and
the command on the main thread. Its clocks are rich's and that of the run's summary. `Interrupts` replaces the signal
handlers of the whole process while its block runs, in the main thread: SIGINT, SIGTERM and SIGHUP become
KeyboardInterrupt, at once or after a deferred block; after `defer_all` they are held until the end. No files, no requests.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from llmopt._platform import end_signals
from llmopt.values.events import Event, OnEvent, RequestRetry, RequestWaiting

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

    from llmopt.cli.console import RunSummary
_CAUSES: Final[dict[str, str]] = {
    "limiter": "waiting for the rate limit",
    "breaker": "waiting for the server to recover",
}


class ProgressDisplay(Protocol):
    """Displays progress.

    Attributes:
        on_event: for the client whose work is watched, None where events are of no use.
    """

    on_event: OnEvent | None

    def update(self, summary: RunSummary) -> None:
        """Show the current numbers."""


class _NoDisplay:
    on_event: OnEvent | None = None

    def update(self, summary: RunSummary) -> None:
        """Do nothing."""


def progress_display(
    total: int | None, *, quiet: bool, no_color: bool
) -> AbstractContextManager[ProgressDisplay]:
    """A bar where standard error is a terminal, else nothing.

    Args:
        total: number of texts, None when it is not known.
        quiet: nothing in any case.
        no_color: without colours.
    """
    if quiet or not sys.stderr.isatty():
        return nullcontext(_NoDisplay())
    return ProgressBar(total, no_color=no_color)


class ProgressBar:
    """Texts, rate, time left and tokens, in one line that goes away at the end."""

    def __init__(self, total: int | None, *, no_color: bool) -> None:
        self._total: Final = total
        self._bar: Final = _bar(known=total is not None, no_color=no_color)
        self._task: Final = self._bar.add_task(
            "", total=total, of=f"/{total:,}" if total else "", tokens=0, rate=0.0, why=""
        )
        self.on_event: OnEvent | None = self._on_event

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, summary: RunSummary) -> None:
        """Show these numbers."""
        self._bar.update(
            self._task, completed=summary.texts, tokens=summary.tokens, rate=_rate(summary), why=""
        )

    def _on_event(self, event: Event) -> None:
        """Say why nothing moves; on the client's thread."""
        if isinstance(event, RequestRetry):
            self._bar.update(self._task, why=f"{event.cause}, again in {event.delay:.1f} s")
        elif isinstance(event, RequestWaiting) and event.cause in _CAUSES:
            self._bar.update(self._task, why=_CAUSES[event.cause])


def _rate(summary: RunSummary) -> float:
    return summary.texts / summary.seconds if summary.seconds else 0.0


def _bar(*, known: bool, no_color: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,.0f}{task.fields[of]} texts"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        *([TimeRemainingColumn(compact=True), TextColumn("left")] if known else []),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TextColumn("{task.fields[why]}"),
    ]
    # None leaves the choice to NO_COLOR and to the kind of terminal.
    console = Console(stderr=True, no_color=no_color or None)
    # Not redirected: the output of the command belongs to whatever reads it.
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


# Signals, deferred while a file is being written.


class Interrupts:
    """Turns the signals that end a program into `KeyboardInterrupt`, except where they are held.

    Use it in ``with``, in the main thread. A signal that the process was told to ignore, as by
    ``nohup``, is still ignored.
    """

    def __init__(self) -> None:
        self._former: Final[dict[int, Any]] = {}
        self._deferring = False
        self._pending = False

    def __enter__(self) -> Self:
        for number in end_signals():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _handle(self, *_: object) -> None:
        if not self._deferring:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait until the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def defer_all(self) -> None:
        """Defer every further signal: the finished rows are being saved, and then the run ends anyway."""
        self._deferring = True
