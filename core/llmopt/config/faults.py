"""What is wrong with a key, said without the value that stands there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from llmopt.errors import ConfigError

_BARE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHOWN: Final = 60


class KeyFault(ConfigError):
    """One key of a table is wrong.

    Attributes:
        key: path of the key inside its table, "" for the table itself.
        text: what is wrong, a sentence without its subject.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if key else text)
        self.key = key
        self.text = text


def child(path: str, key: str | int) -> str:
    """The path of ``key`` in the table at ``path``; a number is a position in a list."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _BARE.fullmatch(key):
        key = ascii(key if len(key) <= _SHOWN else key[:_SHOWN] + "...")
    return f"{path}.{key}" if path else key


def got(value: object) -> str:
    """The kind of a value in plain words, never the value."""
    for kind, words in _WORDS:
        if isinstance(value, kind):
            return words
    return "nothing" if value is None else type(value).__name__


_WORDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "text"),
    (Mapping, "a table"),
    (list, "a list"),
    (tuple, "a list"),
)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence about a key that nobody knows, with the likeliest one meant."""
    from difflib import get_close_matches

    names = sorted(known)
    word = key[:_SHOWN].lower().replace("-", "_")
    near = get_close_matches(word, names, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; the keys here are {', '.join(names)}."
