"""A JSON object a line, with the text in one of its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from llmopt.cli.exits import BadInput
from llmopt.cli.readers.lines import Lines
from llmopt.cli.text import listed, plain

_KINDS: Final = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}  # fmt: skip


class JsonlReader:
    """The text of each line is one field of the object that stands there.

    Args:
        lines: of the source.
        field: name of the field.

    Attributes:
        skipped: blank lines so far.
    """

    def __init__(self, lines: Lines, field: str) -> None:
        self._lines: Final = lines
        self._field: Final = field
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each text with the number of its line."""
        number = 0
        for piece in self._lines.pieces():
            lines = piece.split("\n")
            if not lines[-1]:
                lines.pop()
            for line in lines:
                number += 1
                if line and not line.isspace():
                    yield number, self._text(line, number)
                else:
                    self.skipped += 1

    def _text(self, line: str, number: int) -> str:
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._bad(number, f"not valid JSON: {error}") from None
        if type(found) is dict and type(text := found.get(self._field)) is str:
            return text
        raise self._bad(number, self._fault(found))

    def _fault(self, found: Any) -> str:
        if not isinstance(found, dict):
            return f'this is {_KINDS[type(found)]}, not an object such as {{{self._quoted}: "..."}}'
        if self._field not in found:
            return (
                f"there is no field {self._quoted}; the fields there are {listed(found) or 'none'} "
                "(choose one with --field)"
            )
        return f"the field {self._quoted} holds {_KINDS[type(found[self._field])]}, not text"

    @property
    def _quoted(self) -> str:
        return msgspec.json.encode(plain(self._field)).decode()

    def _bad(self, number: int, fault: str) -> BadInput:
        return BadInput(f"{self._lines.name}, line {number}: {fault}.")
