"""A key or token that cannot slip into a log."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from typing import Any, Final

from llmopt.errors import ConfigError

_MAX_BYTES: Final = 4096


class Secret:
    """A key or token, printable ASCII without spaces, at most 4 KiB.

    ``repr`` and ``str`` show a mask; `reveal` gives the text, for a header and nothing else.

    Raises:
        ConfigError: the text cannot be a key; the message never holds it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str, *, source: str = "the key") -> None:
        if not isinstance(text, str):
            raise ConfigError(f"{source} must be text, not {type(text).__name__}.")
        # A shell's `$(cat key)` strips it, a mounted secret file does not.
        text = text.removesuffix("\n").removesuffix("\r")
        self._text: Final = _checked(text, source)

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is never pickled")


def _checked(text: str, source: str) -> str:
    if not text:
        raise ConfigError(f"{source} is empty.")
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{source} has {len(text)} characters; a key has at most {_MAX_BYTES}.")
    if any(not "!" <= character <= "~" for character in text):
        raise ConfigError(
            f"{source} holds a space, a line break or a character outside printable ASCII; "
            "copy it again, without quotes and on one line."
        )
    return text


# How values show themselves: sizes and names, never contents that may be secret or large.

_TOKEN: Final = re.compile(r"[\w.:/-]{1,64}\Z", re.ASCII)


def repr_size(value: Sized) -> str:
    """The number of items or bytes alone."""
    return f"<{len(value)}>"


def repr_names(value: Mapping[str, Any]) -> str:
    """The keys alone."""
    return f"<{', '.join(value)}>"


def repr_code(value: str | None) -> str:
    """A code as it is; of a sentence in its place the size alone, since it may repeat the request."""
    return repr(value) if value is None or _TOKEN.match(value) else repr_size(value)
