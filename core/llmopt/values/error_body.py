"""Error bodies of any shape: what the server says, its codes, and the status that it states.

Providers, gateways and frameworks agree on no shape: objects within objects, lists, flat fields, JSON inside a
message, bare text, HTML. So this reader knows names of keys, whatever the case and the underscores, and follows them
inwards. No body makes it raise. Where it knows no key, the body itself is the message.

No I/O of its own, no clock, no state. It only reads: nothing in a body is executed, and no address in it is opened.
But a body that is not UTF-8 is decoded by the codec that the server's ``charset`` names: Python imports that module
at first use, and a few codecs ("idna", "punycode") raise UnicodeError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec
from attrs import field, frozen

from llmopt.values.error_shape import ERROR_STATUS, is_error, plain_keys
from llmopt.values.secret import repr_code, repr_size

_MAX_MESSAGE: Final = 500
"""Characters of a provider's message."""
_MAX_DEPTH: Final = 6
_MAX_ENTRIES: Final = 3
"""Entries of a list of errors that are read."""
_SUMMARY: Final = ("error", "title")
"""Keys of a summary ("Not Found"), which stands before the words of the other keys."""
_WORDS: Final = (
    "message", "msg", "errormessage", "errormsg", "statusmsg", "errmsg", "err", "errordescription", "faultstring",
    "description", "statusmessage", "reason",
)  # fmt: skip
"""Keys of the message itself, compared without case, ``_`` and ``-``."""
_INNER: Final = ("error", "errors", "fault", "baseresp", "detail", "response", "header")
"""Keys under which the error stands as an object or a list."""
_FURTHER: Final = (
    "innererror", "innererr", "metadata", "details", "violations", "extensions", "promptfeedback", "raw",
)  # fmt: skip
"""Keys of objects that add codes, and sometimes words, to an error; Azure writes ``innererror`` and ``inner_error``."""
_TEXTS: Final = ("detail", "details", "raw")
"""Keys of these that have words also as text."""
_CODE: Final = ("code", "errorcode", "errcode", "statuscode", "httpcode")
_TYPE: Final = ("type", "errortype")
_CODES: Final = (*_CODE, *_TYPE, "status", "reason", "quotaid", "blockreason")
_STATUS: Final = ("statuscode", "code", "status", "httpcode", "httpstatuscode")
_STATUS_AT_START: Final = re.compile(r"(?:error code: |http )?([45][0-9][0-9])\b", re.ASCII | re.IGNORECASE)
_NOTHING: Final = frozenset({"", "{}", "[]", '""', "null", "[[]]", "[{}]"})
_INPUTS: Final = frozenset({"input", "inputs", "text", "texts", "content", "contents", "prompt", "messages"})
"""Names of the parameter that carries the texts; every other parameter concerns the whole request."""


@frozen(kw_only=True)
class ErrorBody:
    """The content of an error body, whatever its form. Codes are always str, so 429 and "429" are the same.

    Attributes:
        message: the provider's message, at most 500 characters; "" for an empty body only.
        code: machine-readable code, or None.
        type: machine-readable type, or None.
        param: the invalid parameter, or None.
        codes: every code, type and reason of all nested objects, in lower case.
        status: the HTTP status that the body states, or None.
        form: "error" for JSON that states an error (`is_error`), "json" for any other JSON, "text" for text and markup.
        raw: the object that the fields were taken from; it has fields that are special to one provider.
    """

    message: str = field(default="", repr=repr_size)
    code: str | None = field(default=None, repr=repr_code)
    type: str | None = field(default=None, repr=repr_code)
    param: str | None = field(default=None, repr=repr_code)
    codes: tuple[str, ...] = field(default=(), repr=False)
    status: int | None = None
    form: Literal["error", "json", "text", "empty"] = "empty"
    raw: Mapping[str, Any] = field(factory=dict, repr=False)


def read_error_body(body: bytes, charset: str = "") -> ErrorBody:
    """Parse an error body.

    Args:
        body: of any form; a part of one will do.
        charset: as the content type states it, for a body that is not UTF-8.
    """
    text = _decoded(body, charset).strip("\ufeff \t\r\n\0")
    if text in _NOTHING:
        return ErrorBody()
    value = _parsed(text)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        # Gemini's dialect sends its errors in a list.
        value = value[0]
    reader = _Reader()
    # The text of what was cut off or is no JSON has the words too, and its codes.
    words = reader.words(_pairs(text) if value is None else value, 0) or _without_markup(text)
    root = value if isinstance(value, dict) else {}
    chain = _chain(root)
    error = root.get("error")
    return ErrorBody(
        message=_shortened(words),
        code=_first_code(chain, _CODE),
        type=_first_code(chain, _TYPE),
        param=_first_code(chain, ("param",)) or _location(root.get("detail")),
        codes=tuple(dict.fromkeys(_codes(reader.levels))),
        status=_status(words, chain),
        form=_form(text, value),
        raw=error if isinstance(error, dict) else root,
    )


def _form(text: str, value: object) -> Literal["error", "json", "text"]:
    if value is None and text[:1] not in ("{", "["):
        return "text"
    # xAI answers with one JSON string.
    if is_error(value) or (isinstance(value, str) and value.strip()):
        return "error"
    return "json"


class _Reader:
    """Collects the words of nested values, and every object on the way.

    Attributes:
        levels: the objects that were read, with plain keys, from the outside in.
    """

    def __init__(self) -> None:
        self.levels: Final[list[dict[str, Any]]] = []

    def words(self, value: object, depth: int) -> str:
        """The words of a value; "" if it has none under the keys that are known."""
        if isinstance(value, str):
            return self._text(value, depth)
        if depth > _MAX_DEPTH:
            return ""
        if isinstance(value, Mapping):
            return self._object(plain_keys(value), depth)
        if isinstance(value, list):
            return "; ".join(filter(None, [self.words(each, depth + 1) for each in value[:_MAX_ENTRIES]]))
        return ""

    def _object(self, keys: dict[str, Any], depth: int) -> str:
        self.levels.append(keys)
        if isinstance(keys.get("loc"), list):
            # FastAPI repeats the whole input in each entry: only its location and message are taken.
            path = ".".join(map(str, keys["loc"]))
            return f"{path}: {keys.get('msg', '')}" if path else str(keys.get("msg", ""))
        summary = (keys[key] for key in _SUMMARY if isinstance(keys.get(key), str))
        own = ((key, self.words(keys.get(key), depth + 1)) for key in _WORDS)
        parts = [self.words(each, depth) for each in summary]
        # Google's ErrorInfo and others: "API_KEY_INVALID" is a code and no reason in words.
        parts += [words for key, words in own if key != "reason" or " " in words]
        for key in (*_INNER, *_FURTHER):
            inner = keys.get(key)
            if isinstance(inner, str):
                parts.append(self.words(inner, depth + 1) if key in _TEXTS else "")
            elif inner:
                parts.append(self.words(inner, depth + 1) or self._by_field(key, inner, depth))
        return _joined(parts)

    def _by_field(self, key: str, value: object, depth: int) -> str:
        # ASP.NET: the errors of each field of the request, under its name.
        if key != "errors" or not isinstance(value, Mapping):
            return ""
        fields = list(value.items())[:_MAX_ENTRIES]
        return "; ".join(
            f"{name}: {words}" for name, each in fields if (words := self.words(each, depth + 1))
        )

    def _text(self, text: str, depth: int) -> str:
        """Text, in which an error as JSON is replaced by its words, as gateways quote those behind them."""
        start = text.find("{")
        if start < 0 or depth > _MAX_DEPTH:
            return text
        value, end = _json_at(text, start)
        words = self.words(value, depth + 1) if isinstance(value, dict) else ""
        return f"{text[:start]}{words}{text[end:]}" if words else text


def _joined(parts: Iterable[str]) -> str:
    kept: list[str] = []
    for part in map(str.strip, parts):
        if part and not any(part in other for other in kept):
            kept.append(part)
    return ": ".join(kept)


def _chain(value: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """The objects from the error itself outwards; the code of the innermost one is the most exact."""
    keys = plain_keys(value)
    inner = next(filter(None, (_inner_object(key, keys.get(key)) for key in _INNER)), None)
    return [*_chain(inner, depth + 1), keys] if inner and depth < _MAX_DEPTH else [keys]


def _inner_object(key: str, value: object) -> Mapping[str, Any] | None:
    if isinstance(value, list) and value and key != "detail":
        value = value[0]
    return value if isinstance(value, Mapping) else None


def _first_code(chain: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str | None:
    codes = (_code_text(keys.get(name)) for keys in chain for name in names)
    return next((code for code in codes if code is not None), None)


def _code_text(value: object) -> str | None:
    if value is None or isinstance(value, (dict, list, bool)):
        return None
    # LiteLLM writes the None of Python.
    return None if str(value) in ("", "None", "null") else str(value)


def _codes(levels: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for keys in levels:
        for name in _CODES:
            if (code := _code_text(keys.get(name))) is not None:
                yield code.lower()
        # OAuth and others: a code instead of words.
        if isinstance(error := keys.get("error"), str) and " " not in error:
            yield error.lower()


def _status(words: str, chain: Iterable[Mapping[str, Any]]) -> int | None:
    # A gateway's own code is less exact than the status with which its message begins.
    if (start := _STATUS_AT_START.match(words)) is not None:
        return int(start[1])
    stated = (ERROR_STATUS.fullmatch(str(keys.get(name))) for keys in chain for name in _STATUS)
    return next((int(match[0]) for match in stated if match is not None), None)


def _location(detail: object) -> str | None:
    """The parameter that FastAPI names, unless it is the one with the texts."""
    match detail:
        case [{"loc": ["body", str(name), *_]}, *_] if name not in _INPUTS:
            return name
    return None


_PAIR: Final = re.compile(
    r'"(\w{1,30})"\s*:\s*(?:"((?:[^"\\]|\\.){0,2000})(?:"|\\?$)|([0-9]{1,12})\b)', re.DOTALL
)
_MAX_PAIRS: Final = 50


def _decoded(body: bytes, charset: str) -> str:
    with suppress(UnicodeDecodeError):
        return body.decode()
    # The server may name any codec of Python's; some refuse to replace what they cannot decode, and punycode drops it all.
    with suppress(LookupError, UnicodeError):
        if text := body.decode(charset or "utf-8", "replace"):
            return text
    return body.decode("utf-8", "replace")


def _parsed(text: str) -> Any:
    """The text as JSON, also where it is followed by more or has control characters; None if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        start = text.find("{") if text.startswith(("data:", "event:")) else 0
        return _json_at(text, start)[0] if text[start : start + 1] in ("{", "[") else None


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and where it ends; None if it is not complete."""
    from json import JSONDecoder

    try:
        return JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _pairs(text: str) -> dict[str, Any] | str:
    """The keys with text or a number that occur in incomplete JSON; the text itself if it is something else."""
    if text[:1] not in ("{", "["):
        return _without_markup(text)
    pairs: dict[str, Any] = {}
    for _, match in zip(range(_MAX_PAIRS), _PAIR.finditer(text), strict=False):
        pairs.setdefault(match[1], match[3] or _json_at(f'"{match[2]}"', 0)[0] or match[2])
    return pairs


def _without_markup(text: str) -> str:
    """The text of HTML or XML, without scripts and styles; any other text as it is. In linear time."""
    if not text.startswith("<"):
        return text
    from html import unescape

    words, hidden = [], ""
    for piece in text.split("<"):
        tag, _, rest = piece.partition(">")
        name = tag.split(maxsplit=1)[0].lower() if tag.strip() else ""
        if not hidden:
            hidden = name if name in ("script", "style") else ""
            words.append("" if hidden else rest)
        elif name == f"/{hidden}":
            hidden = ""
            words.append(rest)
    return unescape(" ".join(words)).strip() or text


def _shortened(text: str) -> str:
    # Line breaks of a provider's message must not break a line of a log.
    text = " ".join(text[: 16 * _MAX_MESSAGE].split())
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
