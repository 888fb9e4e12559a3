"""A text a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmopt.cli.readers.lines import Lines


class TxtReader:
    """Every line that is not blank is a text.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines: Final = lines
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""
        number = 0
        for piece in self._lines.pieces():
            texts = piece.split("\n")
            if not texts[-1]:
                texts.pop()
            for text in texts:
                number += 1
                if text and not text.isspace():
                    yield number, text.removesuffix("\r")
                else:
                    self.skipped += 1
