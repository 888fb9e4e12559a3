"""A provider's sentence, made fit for an error: no key, no input text, no control characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_WINDOW: Final = 12
_SHORT: Final = 5


def redact(message: str, *, secrets: Sequence[str] = (), texts: Sequence[str] = ()) -> str:
    """Take out what a message must not repeat.

    A stretch of 12 or more characters that also stands in one of the texts is replaced; a shorter
    text is replaced where it stands whole.

    Args:
        message: the provider's sentence.
        secrets: keys and tokens.
        texts: the inputs of the request.
    """
    for secret in secrets:
        message = message.replace(secret, "[key]")
    message = "".join(character if character.isprintable() else " " for character in message)
    for text in texts:
        if _SHORT <= len(text) < _WINDOW:
            message = message.replace(text, "[text]")
    return _without_echo(message, "\n".join(text for text in texts if len(text) >= _WINDOW))


def _without_echo(message: str, source: str) -> str:
    if not source:
        return message
    kept: list[str] = []
    at = 0
    while at < len(message):
        end = _echo_end(message, at, source)
        if end > at:
            kept.append("[text]")
            at = end
        else:
            kept.append(message[at])
            at += 1
    return "".join(kept)


def _echo_end(message: str, start: int, source: str) -> int:
    """Where the echo that begins at ``start`` ends; ``start`` itself when none begins there."""
    end = start + _WINDOW
    if end > len(message) or message[start:end] not in source:
        return start
    while end < len(message) and message[start : end + 1] in source:
        end += 1
    return end
