"""A request and an answer as plugins see them: no HTTP library's types."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal

import msgspec
from attrs import field, frozen

from llmopt import errors
from llmopt.errors import InvalidResponse, Sent
from llmopt.values.calls import BatchLimit, Operation
from llmopt.values.chat import ServerEvent
from llmopt.values.secret import repr_code, repr_names, repr_size

# What one attempt at a request came to.

Phase = Literal["pool", "connect", "send", "wait", "read", "done"]


@frozen(kw_only=True)
class AttemptInfo:
    """How far one request came on the wire, as the transport reports it.

    Attributes:
        phase: the last phase entered.
        reused: whether the connection had carried a request before.
        sent: whether bytes of the request left this process: "no", "maybe" or "yes".
        queued_s: seconds spent waiting for a pooled connection.
        compressed_size: bytes of the response body as received, None where it was not compressed.
    """

    phase: Phase = "pool"
    reused: bool = False
    sent: Sent = "maybe"
    queued_s: float = 0.0
    compressed_size: int | None = None


@frozen(kw_only=True)
class HttpRequest:
    """What to send.

    Attributes:
        method: "GET" or "POST".
        path: appended to the endpoint's base URL; or a whole URL of that endpoint's own origin.
        headers: header names and values; the place, and the only one, for a secret.
        json: the body, encoded once by the core; None for no body.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    json: Any = field(default=None, repr=False)


@frozen(kw_only=True, slots=False)
class HttpResponse:
    """A complete answer.

    Attributes:
        status: HTTP status.
        headers: lower-case names; of a repeated header the values are joined with ", ".
        body: the body, decompressed.
        info: how the request travelled.
        received: when it came, in seconds since 1970: what dates in headers are measured against.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=repr_size)
    info: AttemptInfo = field(factory=AttemptInfo)
    received: float = field(factory=time.time, eq=False)

    @cached_property
    def json(self) -> Any:
        """The body as JSON (UTF-8 only).

        Raises:
            InvalidResponse: the body is not JSON.
        """
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            kind = self.headers.get("content-type", "no content type")
            raise InvalidResponse(
                f"the answer ({kind[:80]}, {len(self.body)} bytes) is not JSON.",
                reason="json",
                status=self.status,
                sent="yes",
            ) from error


# An answer that carries an error, and one tolerant reader for every shape of it.

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

    message: str = field(default="", repr=repr_size)
    code: str | None = field(default=None, repr=repr_code)
    type: str | None = field(default=None, repr=repr_code)
    param: str | None = field(default=None, repr=repr_code)
    inner_code: str | None = field(default=None, repr=repr_code)
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
    body: bytes = field(default=b"", repr=repr_size)
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


# What an error means, by what to do next.


class VerdictKind(Enum):
    """A closed set: each kind is one way to go on, and one exception when it reaches the caller."""

    TRANSIENT = "transient"
    """Retry."""
    TIMEOUT = "timeout"
    """Retry; the server gave up waiting."""
    RATE_LIMITED = "rate_limited"
    """Wait, and tell the rate limiter."""
    OVERLOADED = "overloaded"
    """Retry with fewer requests at once."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """Never retry: money, credit or quota is gone."""
    BATCH_TOO_LARGE = "batch_too_large"
    """Split the batch and remember the limit."""
    ITEM_TOO_LONG = "item_too_long"
    """One text has too many tokens: find it."""
    ITEM_REJECTED = "item_rejected"
    """One text is refused: find it."""
    CONTENT_FILTERED = "content_filtered"
    """The content filter refused: find the text."""
    AUTH = "auth"
    """The key is wrong."""
    PERMISSION = "permission"
    """The key may not do this."""
    NOT_FOUND = "not_found"
    """No such model, deployment or path."""
    BAD_REQUEST = "bad_request"
    """The request as a whole is wrong."""
    UNEXPECTED = "unexpected"
    """A status nothing of ours should get."""
    INVALID_RESPONSE = "invalid_response"
    """A 2xx that cannot be used: one retry, then find the item."""


_K = VerdictKind
EXCEPTION_OF: Final[dict[VerdictKind, type[errors.ProviderError | errors.InvalidResponse]]] = {
    _K.TRANSIENT: errors.ServerError,
    _K.TIMEOUT: errors.RequestTimeout,
    _K.RATE_LIMITED: errors.RateLimited,
    _K.OVERLOADED: errors.Overloaded,
    _K.QUOTA_EXHAUSTED: errors.QuotaExhausted,
    _K.BATCH_TOO_LARGE: errors.RequestTooLarge,
    _K.ITEM_TOO_LONG: errors.ItemTooLong,
    _K.ITEM_REJECTED: errors.ItemRejected,
    _K.CONTENT_FILTERED: errors.ContentFiltered,
    _K.AUTH: errors.AuthError,
    _K.PERMISSION: errors.PermissionDenied,
    _K.NOT_FOUND: errors.NotFound,
    _K.BAD_REQUEST: errors.BadRequest,
    _K.UNEXPECTED: errors.UnexpectedStatus,
    _K.INVALID_RESPONSE: errors.InvalidResponse,
}
"""Which exception a verdict becomes when it reaches the caller."""


@frozen(kw_only=True)
class Verdict:
    """The meaning of one `Failure`.

    Attributes:
        kind: what to do next.
        code: the provider's machine-readable code, or None.
        message: the provider's own sentence, or "" to take it from the body.
        retry_after: seconds that the body asks to wait, or None; headers are read by the core.
        limit: the limit that the text states ("maximum allowed batch size 32"), or None.
        item: index of the text at fault where the answer names it, or None.
        param: the parameter at fault, which makes it the whole request's; or None.
        hint: what the reader can do about it, in one sentence, or "".
    """

    kind: VerdictKind
    code: str | None = None
    message: str = ""
    retry_after: float | None = None
    limit: BatchLimit | None = None
    item: int | None = None
    param: str | None = None
    hint: str = ""
