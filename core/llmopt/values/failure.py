"""An answer that carries an error, and one tolerant reader for every shape of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import msgspec
from attrs import field, frozen

from llmopt.values.calls import Operation
from llmopt.values.http import HttpResponse
from llmopt.values.shown import size, token
from llmopt.values.stream import ServerEvent

_MAX_MESSAGE: Final = 500
_AN_ERROR: Final = re.compile(r"[45][0-9][0-9]", re.ASCII)


@frozen(kw_only=True)
class ErrorBody:
    """What an error body says, whatever its shape. ``code`` is always text: 429 and "429" are one.

    Attributes:
        message: the provider's sentence, at most 500 characters.
        code: machine-readable code, or None.
        type: machine-readable type, or None.
        param: the parameter at fault, or None.
        inner_code: code of a nested inner error, or None.
        raw: the object the fields came from, for what is special to one provider.
    """

    message: str = field(default="", repr=size)
    code: str | None = field(default=None, repr=token)
    type: str | None = field(default=None, repr=token)
    param: str | None = field(default=None, repr=token)
    inner_code: str | None = field(default=None, repr=token)
    raw: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen(kw_only=True, slots=False)
class Failure:
    """A non-2xx answer, or a 2xx that carries an error, handed to ``classify_error``.

    Attributes:
        status: HTTP status; a success for an error in a stream, and with some gateways.
        headers: lower-case names.
        body: the first 64 KiB of the body, or the data of the event.
        operation: "embeddings", "catalog" or "chat".
        model: model of the call, "" where none is concerned.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=size)
    operation: Operation = "embeddings"
    model: str = ""

    @classmethod
    def from_response(
        cls, response: HttpResponse, *, operation: Operation = "embeddings", model: str = ""
    ) -> Failure:
        """The failure that an answer is."""
        return cls(
            status=response.status,
            headers=response.headers,
            body=response.body[:65536],
            operation=operation,
            model=model,
        )

    @classmethod
    def from_event(cls, event: ServerEvent, *, model: str = "") -> Failure:
        """The failure that an event of a stream is."""
        return cls(status=200, body=event.data[:65536].encode(), operation="chat", model=model)

    @cached_property
    def stated_status(self) -> int:
        """The status that the error has by its own account: under a success that of the body, if it names one."""
        return _stated(self.body) or self.status if 200 <= self.status < 300 else self.status

    @cached_property
    def error(self) -> ErrorBody:
        """The body, read tolerantly. Never raises."""
        return read_error_body(self.body)


def read_error_body(body: bytes) -> ErrorBody:
    """Read an error body of any shape seen in the field.

    Tried in this order: not JSON; a list with one object; ``error`` as an object; ``error`` as
    text; the flat form; FastAPI's ``detail`` (whose echo of the input is left out); ``message`` alone.
    """
    try:
        value = _first_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorBody(message=_cut(body.decode("utf-8", "replace")))
    if not isinstance(value, dict):
        return ErrorBody(message=_cut(str(value)) if isinstance(value, str) else "")
    error = value.get("error")
    if isinstance(error, dict):
        return _from_object(error)
    if isinstance(error, str):
        return _from_object({**value, "message": error, "type": value.get("error_type", value.get("type"))})
    if "message" not in value and "detail" in value:
        return ErrorBody(message=_detail(value["detail"]), raw=value)
    return _from_object(value)


def _first_object(body: bytes) -> Any:
    value = msgspec.json.decode(body)
    return value[0] if isinstance(value, list) and value else value


_STATING: Final = ("status_code", "code", "statusCode", "status")
"""Where an error under a success names the status that it would have had."""


def _stated(body: bytes) -> int | None:
    try:
        value = _first_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    where = error if isinstance(error, dict) else value
    stated = (str(where[key]) for key in _STATING if type(where.get(key)) in (int, str))
    return next((int(each) for each in stated if _AN_ERROR.fullmatch(each)), None)


def _from_object(value: Mapping[str, Any]) -> ErrorBody:
    # The classic Azure surface spells it in one word, its v1 description in two.
    inner = value.get("innererror") or value.get("inner_error")
    message = value.get("message")
    return ErrorBody(
        message=_cut(message) if isinstance(message, str) else _detail(message),
        code=_text(value.get("code", value.get("statusCode"))),
        type=_text(value.get("type")),
        param=_text(value.get("param")),
        inner_code=_text(inner.get("code")) if isinstance(inner, Mapping) else None,
        raw=value,
    )


def _detail(detail: object) -> str:
    if isinstance(detail, str):
        return _cut(detail)
    if isinstance(detail, Mapping) and isinstance(detail.get("detail"), list):
        detail = detail["detail"]
    if not isinstance(detail, list):
        return ""
    parts = [_detail_line(entry) for entry in detail[:3] if isinstance(entry, Mapping)]
    return _cut("; ".join(parts))


def _detail_line(entry: Mapping[str, Any]) -> str:
    where = entry.get("loc")
    path = ".".join(str(step) for step in where) if isinstance(where, list) else ""
    return f"{path}: {entry.get('msg', '')}" if path else str(entry.get("msg", ""))


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, (dict, list, bool)) else str(value)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
