"""A provider's sentence, made fit for an error: no key, no input text, no control characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_WINDOW: Final = 12
_KEY_WINDOW: Final = 8
_SHORT: Final = 5


def redact(message: str, *, secrets: Sequence[str] = (), texts: Sequence[str] = ()) -> str:
    """Take out what a message must not repeat.

    A stretch of 12 or more characters that also stands in one of the texts is replaced, and one of 8 or
    more of a key, since a message may have been cut in the middle of either; what is shorter is replaced
    where it stands whole.

    Args:
        message: the provider's sentence.
        secrets: keys and tokens.
        texts: the inputs of the request.
    """
    message = _plain(message)
    for secret in secrets:
        message = message.replace(secret, "[key]")
    message = _without_echo(message, "\n".join(secrets), _KEY_WINDOW, "[key]")
    for text in texts:
        if _SHORT <= len(text) < _WINDOW:
            message = message.replace(_plain(text), "[text]")
    source = "\n".join(" ".join(_plain(text).split()) for text in texts if len(text) >= _WINDOW)
    return _without_echo(message, source, _WINDOW, "[text]")


def _plain(text: str) -> str:
    """Without control characters, with which one could steer a terminal or a log file."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def _without_echo(message: str, source: str, window: int, mark: str) -> str:
    if not source:
        return message
    kept: list[str] = []
    at = 0
    while at < len(message):
        end = _echo_end(message, at, source, window)
        if end > at:
            kept.append(mark)
            at = end
        else:
            kept.append(message[at])
            at += 1
    return "".join(kept)


def _echo_end(message: str, start: int, source: str, window: int) -> int:
    """Where the echo that begins at ``start`` ends; ``start`` itself when none begins there."""
    end = start + window
    if end > len(message) or message[start:end] not in source:
        return start
    while end < len(message) and message[start : end + 1] in source:
        end += 1
    return end
