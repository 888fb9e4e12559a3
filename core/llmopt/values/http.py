"""HTTP requests, responses and failures as plugins see them, and verdicts: what a failure means.

These values are independent of any HTTP library. `llmopt.values.error_body` reads the bodies of failures.

No I/O and no module-level state. A response reads the wall clock once, when it is made, for the time of its arrival. A
response and a failure parse their body at the first access, in the thread of the reader, and keep the result, which all
later readers share.
"""

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
from llmopt.values.calls import BatchLimit, Dimension, Operation
from llmopt.values.chat import ServerEvent
from llmopt.values.error_body import ErrorBody, read_error_body
from llmopt.values.lenient_json import decode_json
from llmopt.values.secret import repr_body, repr_names, repr_size

Phase = Literal["pool", "connect", "send", "wait", "read", "done"]
"""Waiting for a connection, connecting, sending, waiting for the response, reading it, complete."""


@frozen(kw_only=True)
class AttemptInfo:
    """How far an HTTP request got, as the transport reports it.

    Attributes:
        phase: the last phase that was entered.
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


@frozen
class FormField:
    """One field of a form, which is sent as multipart/form-data (RFC 7578).

    Attributes:
        name: name of the field.
        value: its text or bytes.
        filename: for a file: the name that the server gets.
        content_type: of the value, None to state none.
    """

    name: str
    value: str | bytes = field(repr=repr_size)
    filename: str | None = field(default=None, kw_only=True, repr=False)
    content_type: str | None = field(default=None, kw_only=True)


@frozen(kw_only=True)
class HttpRequest:
    """An HTTP request, built by a plugin. Its body is one of ``json``, ``content`` and ``form``, or there is none.

    Attributes:
        method: "GET" or "POST".
        path: appended to the endpoint's base URL, or an absolute URL with the same origin as the endpoint.
        headers: header names and values. A secret may be in these only, never in the path or the body.
        json: a body that the core encodes as JSON. A GET may have one, too, although many servers ignore it.
        content: a body of any other kind.
        content_type: of ``content``.
        form: the fields of a form. The core assembles them once for each attempt, beside the values themselves.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    json: Any = field(default=None, repr=False)
    content: bytes | None = field(default=None, repr=repr_body)
    content_type: str = "application/octet-stream"
    form: tuple[FormField, ...] = field(default=(), repr=repr_size)


@frozen(kw_only=True, slots=False)
class HttpResponse:
    """A complete HTTP response.

    Attributes:
        status: HTTP status.
        headers: with lower-case names; the values of a repeated header are joined with ", ".
        body: the body, decompressed.
        info: how the request was sent.
        received: when the response arrived, in seconds since 1970; dates in headers are relative to it.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=repr_size)
    info: AttemptInfo = field(factory=AttemptInfo)
    # Not compared: two equal responses seldom arrive at the same moment.
    received: float = field(factory=time.time, eq=False)

    @cached_property
    def json(self) -> Any:
        """The body, parsed as JSON in UTF-8; see `llmopt.values.lenient_json` for the mistakes that are corrected.

        Raises:
            InvalidResponse: the body is not JSON.
        """
        try:
            return decode_json(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            kind = self.headers.get("content-type", "no content type")
            raise InvalidResponse(
                f"the response ({kind[:80]}, {len(self.body)} bytes) is not JSON.",
                reason="json",
                status=self.status,
                sent="yes",
            ) from error


_MAX_BODY: Final = 65_536
"""Bytes of an error body that plugins see."""
_CHARSET: Final = re.compile(r"charset=\"?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)


@frozen(kw_only=True, slots=False)
class Failure:
    """A response with an error, for ``classify_error``: its status is not 2xx, or a 2xx response contains an error.

    Attributes:
        status: HTTP status; 2xx for an error in a stream, and with some gateways.
        headers: with lower-case names.
        body: the first 64 KiB of the body, or of the data of the event.
        operation: "embeddings", "catalog" or "chat".
        model: model of the call, "" if none is concerned.
        received: when the response arrived, in seconds since 1970.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=repr_size)
    operation: Operation = "embeddings"
    model: str = ""
    received: float = field(factory=time.time, eq=False)

    @classmethod
    def from_response(
        cls, response: HttpResponse, *, operation: Operation = "embeddings", model: str = ""
    ) -> Failure:
        """The failure in a response."""
        return cls(
            status=response.status,
            headers=response.headers,
            body=response.body[:_MAX_BODY],
            operation=operation,
            model=model,
            received=response.received,
        )

    @classmethod
    def from_event(cls, event: ServerEvent, *, model: str = "") -> Failure:
        """The failure in an event of a stream."""
        return cls(status=200, body=event.data[:_MAX_BODY].encode(), operation="chat", model=model)

    @cached_property
    def stated_status(self) -> int:
        """The status of the error: for a 2xx response the status that the body states, if it states one."""
        return self.error.status or self.status if 200 <= self.status < 300 else self.status

    @cached_property
    def error(self) -> ErrorBody:
        """The body, parsed by `read_error_body`. Never raises."""
        charset = _CHARSET.search(self.headers.get("content-type", ""))
        return read_error_body(self.body, charset[1] if charset else "")


class VerdictKind(Enum):
    """What a failure means for the next step. The set is closed; each kind has one exception, see `EXCEPTION_OF`."""

    TRANSIENT = "transient"
    """Retry."""
    TIMEOUT = "timeout"
    """Retry; the server ran into a timeout."""
    RATE_LIMITED = "rate_limited"
    """Wait, then retry; the rate limiter is informed."""
    OVERLOADED = "overloaded"
    """Retry, and lower the number of concurrent requests."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """Do not retry: the credit or quota is used up."""
    BATCH_TOO_LARGE = "batch_too_large"
    """Split the batch and remember the limit."""
    ITEM_TOO_LONG = "item_too_long"
    """One text has too many tokens: find it by splitting the batch."""
    ITEM_REJECTED = "item_rejected"
    """One text is refused: find it by splitting the batch."""
    CONTENT_FILTERED = "content_filtered"
    """A content filter refused one text: find it by splitting the batch."""
    AUTH = "auth"
    """The key is invalid: raise."""
    PERMISSION = "permission"
    """The key lacks a permission: raise."""
    NOT_FOUND = "not_found"
    """There is no such model, deployment or path: raise."""
    BAD_REQUEST = "bad_request"
    """The request as a whole is invalid: raise."""
    UNEXPECTED = "unexpected"
    """A status that no request of llmopt should get: raise."""
    INVALID_RESPONSE = "invalid_response"
    """A 2xx response that cannot be used: one retry, then find the text by splitting the batch."""


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
"""The exception that the caller gets for a verdict."""


VerdictScope = Literal["account", "model", "request"]
"""What an exhausted quota concerns."""


@frozen(kw_only=True)
class Verdict:
    """What a `Failure` means; returned by ``classify_error``.

    Attributes:
        kind: what happens next.
        code: the provider's machine-readable code, or None.
        message: the provider's message, "" to take it from the body.
        retry_after: seconds to wait that the body states, or None; the core reads the headers.
        limit: the limit that the message states ("maximum allowed batch size 32"), or None.
        item: index of the invalid text, if the response names it, or None.
        param: the invalid parameter, or None; with it, the failure concerns the whole request and no single text.
        hint: what the user can do about it, in one sentence, or "".
        scope: what `QUOTA_EXHAUSTED` shuts out for some minutes: everything that the credential pays for, one model,
            or nothing but this request.
        exceeded: the limit that `RATE_LIMITED` is about, None if the response does not say.
    """

    kind: VerdictKind
    code: str | None = None
    message: str = ""
    retry_after: float | None = None
    limit: BatchLimit | None = None
    item: int | None = None
    param: str | None = None
    hint: str = ""
    scope: VerdictScope = "account"
    exceeded: Dimension | None = None
