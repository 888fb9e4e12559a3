"""One run of ``llmopt embed``: texts in, rows out, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from llmopt.cli.interrupts import Interrupts
from llmopt.cli.progress import Watcher
from llmopt.cli.tally import Tally
from llmopt.cli.writers.rows import Rows
from llmopt.cli.writers.writer import Writer
from llmopt.values.embeddings import EmbeddedPart

OpenParts = Callable[[Iterator[str]], AbstractContextManager[Iterable[EmbeddedPart]]]
"""Starts the embedding of texts; gives its parts in order, failed rows among them."""


class EmbedRun:
    """Feeds texts to an embedding and writes down what comes back.

    Args:
        texts: each with the number of its line.
        writer: takes the rows.
        tally: counts them.
        stop_at_failure: whether no more is read once a text failed. What is under way by then is
            still awaited and written: it is paid for.
        with_texts: whether the texts are written too.
    """

    def __init__(
        self,
        texts: Iterable[tuple[int, str]],
        writer: Writer,
        tally: Tally,
        *,
        stop_at_failure: bool,
        with_texts: bool,
    ) -> None:
        self._source: Final = texts
        self._writer: Final = writer
        self._tally: Final = tally
        self._stop_at_failure: Final = stop_at_failure
        # What was read and has not come back yet; bounded by what the embedding reads ahead.
        self._lines: Final[deque[int]] = deque()
        self._texts: Final[deque[str] | None] = deque() if with_texts else None

    def run(self, open_parts: OpenParts, interrupts: Interrupts, watcher: Watcher) -> None:
        """Do all of it.

        Raises:
            BadInput: a text cannot be read; the rows before it are written.
            OSError: the rows cannot be written.
            KeyboardInterrupt: somebody has had enough.
        """
        with open_parts(self._feed()) as parts:
            for part in parts:
                with interrupts.held():
                    self._take(part)
                watcher.show(self._tally)

    def _feed(self) -> Iterator[str]:
        for line, text in self._source:
            if self._stop_at_failure and self._tally.failed:
                return
            self._lines.append(line)
            if self._texts is not None:
                self._texts.append(text)
            yield text

    def _take(self, part: EmbeddedPart) -> None:
        count = len(part)
        lines = [self._lines.popleft() for _ in range(count)]
        texts = None if self._texts is None else [self._texts.popleft() for _ in range(count)]
        errors = {index - part.start: error.message for index, error in part.errors.items()}
        self._writer.add(
            Rows(start=part.start, lines=lines, vectors=part.vectors, errors=errors, texts=texts)
        )
        self._tally.take(part, lines)
