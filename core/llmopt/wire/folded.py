"""The headers of an answer as plugins see them: lower-case names, repeated ones joined."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy


class FoldedHeaders(Mapping[str, str]):
    """Worked out when they are first looked at: nobody looks at those of most good answers.

    Args:
        raw: as the parser gives them.
    """

    __slots__ = ("_folded", "_raw")

    def __init__(self, raw: CIMultiDictProxy[str]) -> None:
        self._raw: Final = raw
        self._folded: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._folded is None:
            self._folded = _fold(self._raw)
        return self._folded


def _fold(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for name, value in headers.items():
        key = _lower(name)
        if not value.isascii():
            # Bytes that are not UTF-8 are lone surrogates here, which nobody could print or store.
            value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # noqa: PLW2901 - mended in place
        folded[key] = f"{folded[key]}, {value}" if key in folded else value
    return folded


@lru_cache(maxsize=256)
def _lower(name: str) -> str:
    # A server sends the same names each time; those that are kept also compare by identity.
    return sys.intern(name.lower())
