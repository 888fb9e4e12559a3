"""A provider's own entry of a list: JSON that becomes a table when somebody looks into it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

_decoder: Final = msgspec.json.Decoder()


class Entry(Mapping[str, Any]):
    """A JSON object as a mapping, decoded at the first look and kept.

    Args:
        text: the object, checked to be one; what it is a part of stays in memory with it.
    """

    __slots__ = ("_table", "_text")

    def __init__(self, text: bytes | msgspec.Raw) -> None:
        self._text: Final = text
        self._table: dict[str, Any] | None = None

    @property
    def text(self) -> bytes:
        """The JSON, as it came."""
        return bytes(self._text)

    @property
    def part(self) -> msgspec.Raw:
        """The same, not copied if it is a part of something."""
        return self._text if isinstance(self._text, msgspec.Raw) else msgspec.Raw(self._text)

    def _look(self) -> dict[str, Any]:
        if self._table is None:
            self._table = _decoded(self._text)
        return self._table

    def __getitem__(self, key: str) -> Any:
        return self._look()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())

    def __contains__(self, key: object) -> bool:
        return key in self._look()

    def __repr__(self) -> str:
        return f"Entry(<{len(bytes(self._text))} bytes>)"

    def __reduce__(self) -> tuple[type[Entry], tuple[bytes]]:
        return Entry, (self.text,)


def _decoded(text: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        found = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Its syntax was checked when the list was split, but not every letter and number in it.
        found = json.loads(bytes(text).decode(errors="replace"))
    return found if isinstance(found, dict) else {}
