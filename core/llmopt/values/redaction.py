"""Redaction: keys, input texts and control characters are removed from text that a provider or a plugin wrote.

Only whole values are removed, because a message must keep its own words: a key called ``token`` must not turn "600
tokens" into "600 [key]s". The time is linear in the length of the message plus the number of texts.

No clock and no state of its own. No I/O, except in `place_of`, which is for exceptions of foreign code: Python's
``traceback`` module then reads the source files named in it, and keeps them in the process's ``linecache``.
`foreign_frames` changes the traceback that it is given.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Final
from urllib.parse import quote

from llmopt.values.calls import Call, ChatCall, EmbedCall, Settings
from llmopt.values.secret import HiddenStr

_PACKAGE: Final = str(Path(__file__).parents[1])
_SECRET_HEADER: Final = re.compile(
    r"auth|key|token|secret|cookie|passw|credential|session|signature|^code$|^sig$", re.IGNORECASE
)
"""Names of headers and parameters that hold a key. The key of a function app is in ``code``, that of a signed URL in ``sig``."""
_SEPARATOR: Final = re.compile(r"[\s;,]+")
_WORD: Final = r"(?:[a-z]{1,14}|[A-Z]{1,14}|[A-Z][a-z]{1,13})"
_PLACEHOLDER: Final = re.compile(_WORD)
"""A plain word such as ``ollama`` or ``EMPTY``: what is written where a server needs no key."""
_WORDS: Final = re.compile(rf"{_WORD}(?:[-_./: ]{_WORD})*")
"""Words of a message. A key that was made at random has digits, or capitals inside a word."""
_MIN_KEY: Final = 8
"""A shorter key is removed only between quotation marks. Also the length from which a part of a key is removed: a shorter
part may occur in a message by chance."""
_MIN_QUOTED_KEY: Final = 4
_RUN: Final = re.compile(r"[!-~]{8,}")
_PUNCTUATION: Final = "-_./:;,!?()[]{}<>'\"`"
_MAX_KEY_END: Final = 512
"""Characters of a long key that are looked for, at both of its ends; messages are not longer."""
_PROBE: Final = 12
"""A shorter text is removed only between quotation marks. Also how many characters at either end of a longer text are
searched for."""
_SURELY_QUOTED: Final = 32
"""Characters that the words of a message and an input text do not share by accident."""
_TEXT_END: Final = 600
"""Characters of a text that are compared, at either end; messages are not longer."""
_PROBE_WINDOW: Final = 64
# Curly quotation marks are written as escapes, which are easier to tell from straight ones.
_QUOTES: Final = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_QUOTED: Final = f"(?<=[{_QUOTES}]){{}}(?=[{_QUOTES}])"
_BEFORE: Final = re.compile(rf"[{_QUOTES}(\[{{<:=]\s*\Z")
_AFTER: Final = re.compile(r"\s*(?:\Z|[^\w\s])")
_CUT_OFF: Final = re.compile(rf"\s*(?:\Z|…|\.\.|[{_QUOTES})\]}}>])")
"""What stands where a quotation is not complete, or ends."""
_GAP: Final = re.compile(r"[\s,;|/\"'`.…]*")
_BLANKS: Final = re.compile("  +")
_ELLIPSIS: Final = re.compile(r"…|\.\.\.")
_URL_SAFE: Final = str.maketrans("+/", "-_")
_LABELS: Final = frozenset({"role", "type", "id", "name", "tool_call_id", "detail"})
"""Keys of a chat message whose values are words of the dialect, which messages use too."""


def secrets_of(settings: Settings) -> list[str]:
    """The keys and tokens that the requests of these settings contain."""
    configured = (*settings.headers.items(), *settings.query.items())
    secrets = [value for name, value in configured if _SECRET_HEADER.search(name)]
    if settings.credential is not None:
        secrets.append(HiddenStr(settings.credential.reveal()))
    return secrets


def input_texts(call: Call) -> Sequence[str]:
    """The texts of a call, which no message may repeat."""
    if isinstance(call, EmbedCall):
        return call.texts
    return list(_strings(call.messages)) if isinstance(call, ChatCall) else ()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([inner for name, inner in value.items() if name not in _LABELS])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def printable(text: str) -> str:
    """Text without control characters, bidirectional overrides and line separators.

    They could manipulate a terminal, or forge lines of a log.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def redact(message: str, *, secrets: Iterable[str] = (), texts: Iterable[str] = ()) -> str:
    """Remove keys, input texts and control characters from a message.

    A key is removed wherever it occurs, in capitals, base64, hexadecimal or escaped, and so are parts of it from 8
    characters on. A short key, and one that is a plain word, is removed only between quotation marks. A text is removed
    where it is quoted whole, or cut off at one of its ends.

    Args:
        message: of a provider or a plugin.
        secrets: keys and tokens, or headers that contain them.
        texts: the inputs of the request.
    """
    message = _BLANKS.sub(" ", printable(message))
    values = dict.fromkeys(
        part for secret in secrets for part in map(HiddenStr, _SEPARATOR.split(secret)) if part
    )
    keys = [value for value in values if not is_plain(value)]
    if keys:
        message = _without_keys(message, keys)
    for value in set(values).difference(keys):
        # Not a short placeholder such as ``token``: it is a word of many messages, also between quotation marks.
        if len(value) >= _MIN_KEY or (len(value) >= _MIN_QUOTED_KEY and not _PLACEHOLDER.fullmatch(value)):
            message = _without_quoted(message, value, "[key]")
    return _without_texts(message, texts)


def foreign_frames(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of llmopt itself; those of plugins and of the application stay."""
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    kept = None
    for each in reversed(entries):
        if not each.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            each.tb_next, kept = kept, each
    return kept


def place_of(error: BaseException, outside: tuple[str, ...]) -> str:
    """Where foreign code raised an exception, as " (folder/file.py, line 7)"; "" if that is not known.

    Args:
        error: the exception.
        outside: paths of files and folders that are not the foreign code's.
    """
    frames = [each for each in extract_tb(error.__traceback__) if not each.filename.startswith(outside)]
    # The code itself may call others, in which the last frame is; what its author can change is its own last line.
    own = [each for each in frames if each.filename == frames[0].filename]
    return f" ({'/'.join(Path(own[-1].filename).parts[-2:])}, line {own[-1].lineno})" if own else ""


def repeats_key(text: str, secrets: Iterable[str]) -> bool:
    """Whether a header repeats a whole key, plainly or in base64. For every response, so it looks for nothing else."""
    return any(
        value in text or b64encode(value.encode()).decode().rstrip("=")[:-1] in text
        for secret in secrets
        if not is_plain(value := secret.rpartition(" ")[2])
    )


def is_plain(value: str) -> bool:
    """Whether a key is too short, or too much of a plain word, to be removed wherever it occurs."""
    return len(value) < _MIN_KEY or _PLACEHOLDER.fullmatch(value) is not None


def _without_keys(message: str, keys: Sequence[str]) -> str:
    # Most messages consist of words, which are no parts of keys; so most need no search.
    runs = [run for run in _RUN.finditer(message) if _may_be_key(run[0], keys)]
    if not runs:
        return message
    source = HiddenStr("\n".join(map(_spellings, keys)).lower())
    spans = [
        (at, at + _MIN_KEY)
        for run in runs
        for at in range(run.start(), run.end() - _MIN_KEY + 1)
        if message[at : at + _MIN_KEY].lower() in source
    ]
    parts = [span for span in _merged(spans) if _may_be_key(message[slice(*span)], keys)]
    return _replaced(message, parts, "[key]")


def _may_be_key(text: str, keys: Sequence[str]) -> bool:
    """Whether it is not of words only, or contains a whole key, which may be of words itself."""
    return not _WORDS.fullmatch(text.strip(_PUNCTUATION)) or any(key in text for key in keys)


def _spellings(key: str) -> str:
    """A key in the spellings in which a server may repeat it, one a line."""
    if len(key) > 2 * _MAX_KEY_END:
        key = HiddenStr(f"{key[:_MAX_KEY_END]}{key[-_MAX_KEY_END:]}")
    # In base64 a key looks different behind 0, 1 or 2 other bytes, such as those of a user name.
    encoded = HiddenStr("\n".join(b64encode(bytes(offset) + key.encode()).decode() for offset in range(3)))
    return HiddenStr(
        "\n".join(
            (
                *(key, quote(key, safe=""), key.replace("/", "\\/"), key.encode().hex()),
                *(encoded, encoded.translate(_URL_SAFE)),
            )
        )
    )


def _without_texts(message: str, texts: Iterable[str]) -> str:
    spans: list[tuple[int, int]] = []
    short = []
    # What follows an ellipsis is the end of a text: its beginning, read backwards.
    backwards = message[::-1] if _ELLIPSIS.search(message) else ""
    for text in texts:
        if len(text) < _PROBE:
            if text and text in message:
                short.append(text)
            continue
        spans += _quotations(message, text)
        if backwards:
            size = len(message)
            spans += [
                (size - end, size - start) for start, end in _quotations(backwards, text[-_TEXT_END:][::-1])
            ]
    spans = [span for span in _merged(spans, message) if _stands_apart(message, *span)]
    message = _replaced(message, spans, "[text]")
    for text in short:
        message = _without_quoted(message, printable(text), "[text]")
    return message


def _quotations(message: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a message repeats a text, whole or as far as it was cut off."""
    # White space is compared as one blank: messages have lost their line breaks.
    probe = " ".join(text[:_PROBE_WINDOW].split())[:_PROBE]
    start = message.find(probe) if len(probe) == _PROBE else -1
    while start >= 0:
        head = " ".join(printable(text[:_TEXT_END]).split())
        pairs = zip(head, message[start:], strict=False)
        size = next(
            (at for at, (one, other) in enumerate(pairs) if one != other),
            min(len(head), len(message) - start),
        )
        if size == len(head) or _CUT_OFF.match(message, start + size):
            yield start, start + size
        start = message.find(probe, start + size)


def _stands_apart(message: str, start: int, end: int) -> bool:
    if end - start >= _SURELY_QUOTED:
        return True
    return _BEFORE.search(message[:start]) is not None and _AFTER.match(message, end) is not None


def _without_quoted(message: str, value: str, mark: str) -> str:
    return re.sub(_QUOTED.format(re.escape(value)), mark, message)


def _merged(spans: Iterable[tuple[int, int]], message: str = "") -> list[tuple[int, int]]:
    """Spans in order; those that overlap, or have only punctuation of ``message`` between them, become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and (start <= merged[-1][1] or (message and _GAP.fullmatch(message, merged[-1][1], start))):
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _replaced(message: str, spans: Iterable[tuple[int, int]], mark: str) -> str:
    parts, position = [], 0
    for start, end in spans:
        parts += [message[position:start], mark]
        position = end
    return "".join([*parts, message[position:]])
