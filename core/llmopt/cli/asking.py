"""Asking many providers for their models, with a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Self

from llmopt.errors import LLMOptError
from llmopt.operations.catalog import CacheMode
from llmopt.values.cache_events import CatalogDiscover
from llmopt.values.catalog import Catalog
from llmopt.values.events import Event

if TYPE_CHECKING:
    from rich.progress import Progress


def ask_all(
    providers: tuple[str, ...],
    config: str | None,
    *,
    mode: CacheMode = "auto",
    timeout: float | None = None,
    no_color: bool = False,
) -> Mapping[str, Catalog | LLMOptError]:
    """The models of providers, or why there are none.

    Args:
        providers: names of entries; none for all that are configured or have a key.
        config: path of the configuration file, None for the usual one.
        mode: what to make of the cache.
        timeout: seconds for each.
        no_color: without colours.
    """
    from llmopt.client.sync_client import Client

    with Answers(no_color=no_color) as answers, Client(config, on_event=answers.heard) as client:
        return client.batch_list_models(providers or None, timeout=timeout, cached=mode)


class Answers:
    """Counts providers as they answer: a line that goes away at the end, on a terminal and nowhere else."""

    def __init__(self, *, no_color: bool) -> None:
        self._bar: Final = _bar(no_color=no_color) if sys.stderr.isatty() else None
        self._task: Final = None if self._bar is None else self._bar.add_task("", total=None, failed="")
        self._failed = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def heard(self, event: Event) -> None:
        """Take note of an event; called on the client's thread."""
        if isinstance(event, CatalogDiscover) and self._bar is not None and self._task is not None:
            self._failed += event.outcome != "ok"
            failed = f", {self._failed} without an answer" if self._failed else ""
            self._bar.update(self._task, advance=1, failed=failed)


def _bar(*, no_color: bool) -> Progress:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} providers{task.fields[failed]}"))
    console = Console(stderr=True, no_color=no_color or None)
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
