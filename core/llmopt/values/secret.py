"""API keys and tokens that do not appear in logs, and how values show secret or large fields in ``repr``.

Pure: no I/O, no state. It finds no key by itself: the text is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from typing import Any, Final

from llmopt.errors import ConfigError

# Tokens of identity providers carry the groups of their user. Few servers accept headers above this size.
_MAX_LENGTH: Final = 64 * 1024
_PASTED_NAME: Final = re.compile(r"(export\s+)?[A-Z][A-Z0-9_]*(KEY|TOKEN)\s*=\s*\S")
_UNEXPANDED: Final = re.compile(r"\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|\{\{.*\}\}|%[A-Z_][A-Z0-9_]*%")
_MACHINE_READABLE: Final = re.compile(r"[\w.:/-]{1,64}\Z", re.ASCII)


class HiddenStr(str):
    """A text whose ``repr`` shows a mask, so that no traceback with local variables shows it; all else is as in str."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def plain_text(value: object) -> str:
    """The text of a subclass of str, as an ``enc_hook`` of msgspec, which encodes none of them.

    Raises:
        TypeError: the value is no text.
    """
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} cannot be expressed in JSON")


class HiddenBytes(bytes):
    """Bytes whose ``repr`` shows a mask, for what contains a key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'***'"


class Secret:
    """An API key or token: printable ASCII without spaces, at most 65,536 characters.

    ``repr`` and ``str`` show a mask. Only `reveal` returns the text, for a request header.

    Args:
        text: the key. One line break at the end is removed.
        source: where the key comes from, for the error message.

    Raises:
        ConfigError: the text cannot be a key; the message does not contain it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str, *, source: str = "the key") -> None:
        if not isinstance(text, str):
            raise ConfigError(f"{source} must be str, not {type(text).__name__}.")
        # A shell's `$(cat key)` removes the line break at the end of a file; a mounted secret file keeps it.
        text = HiddenStr(text.removesuffix("\n").removesuffix("\r"))
        self._text: Final = _checked(text, source)

    def reveal(self) -> str:
        """The text of the key."""
        return str.__str__(self._text)

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled; configure the key in the other process")


def _checked(text: str, source: str) -> str:
    if not text:
        raise ConfigError(f"{source} is empty.")
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{source} has {len(text)} characters; a key has at most {_MAX_LENGTH}.")
    if problem := _paste_problem(text):
        raise ConfigError(f"{source} {problem}.")
    if any(not "!" <= character <= "~" for character in text):
        raise ConfigError(
            f"{source} contains a space, a line break or a character outside printable ASCII; "
            "copy it again, without quotes and on one line."
        )
    return text


def _paste_problem(text: str) -> str:
    """What was copied together with a key, or instead of it; the words are for the error message."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        return "is in quotes, which are a part of it as it stands; leave them out"
    if text[:7].lower() == "bearer ":
        return 'begins with the word "Bearer", which llmopt adds; leave it out'
    if _PASTED_NAME.match(text):
        return "begins with the name of a variable and an equals sign; leave both out"
    if _UNEXPANDED.fullmatch(text):
        return (
            "is the name of a variable that was not replaced by its value; name the variable in api_key_env"
        )
    return ""


# Values use these for ``repr``: sizes and names are shown, contents that may be secret or large are not.


def repr_size(value: Sized) -> str:
    """The number of items, characters or bytes."""
    return f"<{len(value)}>"


def repr_body(body: bytes | None) -> str:
    """The size of a body, if there is one."""
    return "None" if body is None else f"<{len(body)} bytes>"


def repr_names(value: Mapping[str, Any]) -> str:
    """The keys of a mapping."""
    return f"<{', '.join(value)}>"


def repr_code(value: str | None) -> str:
    """A machine-readable code. Of a longer text only the size is shown, because it may repeat parts of the request."""
    return repr(value) if value is None or _MACHINE_READABLE.match(value) else repr_size(value)
