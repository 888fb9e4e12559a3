"""Requests: what an operation asks of the engine, and how it becomes bytes.

`Request` says what is asked for and how large it is. `RequestEncoder` turns what a plugin builds of it into a
`TransportRequest`. `RequestCompressor` compresses bodies, for servers that accept that.

Only `RequestCompressor.send` and `RequestSigner.send` do I/O, by awaiting the transport, which may be the
user's; the rest of a refusal's body is discarded in the background. Large bodies are compressed in a worker thread. All
requests of an endpoint share its encoder, its compressor and its counters, without a lock. Event loops in several
threads may check or compress something twice, or lose a count. The monotonic clock is passed in. Compression is reported to the user's
listener, and its end for an endpoint also to the log. A `Request` carries callbacks of the operations, which the engine
calls.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from attrs import define, evolve, field, frozen

from llmopt.config.resolve import Endpoint
from llmopt.config.urls import InvalidUrl, add_query, origin_of
from llmopt.engine.responses import Parse, T
from llmopt.engine.telemetry import EndpointMetrics, Telemetry
from llmopt.errors import LLMOptError, PluginContractError
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.tasks import run_in_thread
from llmopt.transport.request import TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.values.calls import Call, CatalogCall, ChatCall, Priority, Settings
from llmopt.values.embeddings import Usage
from llmopt.values.events import CompressionRefused, RequestCompression
from llmopt.values.http import FormField, HttpRequest, HttpResponse
from llmopt.values.secret import plain_text

if TYPE_CHECKING:
    from llmopt.engine.attempt import CallScope


@define(kw_only=True, eq=False)
class Request(Generic[T]):
    """One request, however often it is sent. Never changed; it is not frozen because that doubles the time to make one.

    Attributes:
        call: what is asked for.
        parse: parses a 2xx response.
        deadline: of the whole call.
        max_body: maximum size of the response in bytes, after decompression.
        items: number of texts.
        tokens: estimated tokens, which the rate limiter reserves.
        output_tokens: those of the reply, a part of ``tokens``.
        fill: size as a share of the largest allowed request, 0 to 1, for the timeout.
        wait_when_open: whether to wait while the circuits of all endpoints are open.
        priority: which of the requests that wait are sent first.
        first_of_call: whether it counts as a waiting call, and is refused if too many wait. The later requests of an
            embedding are not, because their number is bounded by the call, which has its place already.
        suspect: whether it is a part of a request that a single text may have caused to fail. The same failure
            is then expected, and says nothing about the server.
        worth_retrying: whether the same request may be sent again after an error. It is asked before the retry policy.
        usage_of: the usage that a response reports, None if it reports none.
        scope: the call of the user's that it is for, None for one of its own.
    """

    call: Call
    parse: Parse[T] = field(repr=False)
    deadline: Deadline
    max_body: int
    items: int = 0
    tokens: int = 0
    output_tokens: int = 0
    fill: float = 0.0
    wait_when_open: bool = False
    priority: Priority = "interactive"
    first_of_call: bool = True
    suspect: bool = False
    worth_retrying: Callable[[Request[T], LLMOptError], bool] = field(default=lambda *_: True, repr=False)
    usage_of: Callable[[T], Usage | None] = field(default=lambda _: None, repr=False)
    scope: CallScope | None = field(default=None, repr=False)


@define(kw_only=True, eq=False)
class StreamRequest(Request[Any]):
    """A request for a stream. ``parse`` is used if the server does not stream its reply.

    Attributes:
        call: what is asked for, with ``stream``.
        buffer_size: maximum number of events that are parsed at once.
    """

    call: ChatCall
    buffer_size: int = 100


# Encoding: from the request of a plugin to checked headers and bytes.

# The transport frames each request; a second length would split it in two (RFC 9112, 6.3).
_HEADER_NAME: Final = re.compile(r"(?!(?i:content-length|transfer-encoding)\Z)[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_IN_PROCESS: Final = "http://in-process"
_PATH: Final = re.compile(r"[\x21-\x7e]*\Z")
_MAX_CHECKED: Final = 64
_MAX_PATH: Final = 200
_FORM: Final = "multipart/form-data; boundary="
_FORM_ESCAPES: Final = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}
_NOT_JSON: Final = (TypeError, ValueError, RecursionError)
json_encoder: Final = msgspec.json.Encoder(enc_hook=plain_text)


class RequestEncoder:
    """Encodes the requests of one endpoint. URLs and headers repeat, so the result of checking them is cached.

    Args:
        compression: whether responses may be compressed.
    """

    def __init__(self, *, compression: bool = True) -> None:
        # The transport adds the encodings that it can decode, unless the header is there.
        identity = {} if compression else {"accept-encoding": "identity"}
        self._default_headers: Final = {"accept": "application/json", **identity}
        self._boundary = ""
        self._checked: Final[dict[tuple[object, ...], tuple[str, Mapping[str, str]]]] = {}

    def __call__(self, request: HttpRequest, settings: Settings) -> TransportRequest:
        """Encode a plugin's request. The pipeline sets its timeouts when it sends it.

        Raises:
            PluginContractError: the URL leaves the endpoint's origin, a header, the method or the body cannot be sent, or
                there are two bodies.
        """
        body = None if request.json is None else _encode_json(request.json, settings)
        if request.content is not None or request.form:
            request, body = self._with_other_body(request, settings)
        key = (settings.base_url, request.path, request.method, body is None, *request.headers.items())
        try:
            checked = self._checked.get(key)
        except TypeError:
            # A value is not hashable, so it is no string: `_check_headers` raises.
            checked = None
        if checked is None:
            checked = _checked(request, settings, self._default_headers)
            # Bounded: a cursor in the path or a token that changes makes new entries without end.
            if len(self._checked) >= _MAX_CHECKED:
                self._checked.clear()
            self._checked[key] = checked
        url, headers = checked
        return TransportRequest(method=request.method, url=url, headers=headers, body=body, settings=settings)

    def _with_other_body(self, request: HttpRequest, settings: Settings) -> tuple[HttpRequest, bytes]:
        """A request with a body that is not JSON, as the request with its content type, and the bytes."""
        given = [name for name in ("json", "content") if getattr(request, name) is not None]
        given += ["form"] if request.form else []
        if len(given) > 1:
            raise _contract_error(settings, f"gave {' and '.join(given)}, but a request has one body")
        body, kind = request.content, request.content_type
        if body is None:
            # Drawn once and not for each request: a retry sends, compresses and signs the same bytes. It is random, so that no text
            # can contain it on purpose.
            self._boundary = self._boundary or secrets.token_hex(16)
            body, kind = _encode_form(request.form, self._boundary, settings), f"{_FORM}{self._boundary}"
        elif not isinstance(body, bytes):
            raise _contract_error(settings, f"gave content of type {type(body).__name__}, not bytes")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-type"}
        return evolve(request, headers={**headers, "content-type": kind}), body


def _checked(
    request: HttpRequest, settings: Settings, defaults: Mapping[str, str]
) -> tuple[str, Mapping[str, str]]:
    if request.method not in ("GET", "POST"):
        raise _contract_error(settings, f"built a {request.method!r:.20} request, not GET or POST")
    headers = {**defaults, **request.headers}
    if request.json is not None:
        headers["content-type"] = "application/json"
    _check_headers(headers, settings)
    return _url(request.path, settings), headers


def add_if_none_match(request: HttpRequest, call: Call) -> HttpRequest:
    """The request, made conditional if the call has the etag of a known response (RFC 9110, 13.1.2)."""
    if not isinstance(call, CatalogCall) or call.etag is None:
        return request
    return evolve(request, headers={**request.headers, "if-none-match": call.etag})


def _encode_json(value: object, settings: Settings) -> bytes:
    # The encoder would write them in base64.
    if isinstance(value, (bytes, bytearray)):
        raise _contract_error(settings, "gave bytes as json, not the value that they encode")
    try:
        return json_encoder.encode(value)
    except _NOT_JSON as error:
        # The plugin's fault: what the caller gave was checked before. Of the encoder's messages only those about
        # a type are shown, because the others may contain a value.
        reason = str(error) if isinstance(error, TypeError) else type(error).__name__
        what = f"built a request body that JSON cannot express: {_faulty_path(value)}: {reason}"
        raise _contract_error(settings, what) from None


def _encode_form(fields: Sequence[FormField], boundary: str, settings: Settings) -> bytes:
    """A form as multipart/form-data (RFC 7578); names are escaped as browsers do it (WHATWG HTML, 4.10.21.8)."""
    pieces: list[bytes] = []
    try:
        for each in fields:
            head = (
                f'--{boundary}\r\ncontent-disposition: form-data; name="{each.name.translate(_FORM_ESCAPES)}"'
            )
            if each.filename is not None:
                head += f'; filename="{each.filename.translate(_FORM_ESCAPES)}"'
            if each.content_type is not None:
                _check_headers({"content-type": each.content_type}, settings)
                head += f"\r\ncontent-type: {each.content_type}"
            value = each.value.encode() if isinstance(each.value, str) else each.value
            pieces += (f"{head}\r\n\r\n".encode(), value, b"\r\n")
        return b"".join((*pieces, f"--{boundary}--\r\n".encode()))
    except (AttributeError, TypeError, ValueError) as error:
        what = (
            f"built a form that cannot be sent ({type(error).__name__}): give FormField, with text or bytes"
        )
        raise _contract_error(settings, what) from None


def _faulty_path(value: object, path: str = "json") -> str:
    """The path of the innermost value that JSON cannot express."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if type(value) is list else ()
    for key, item in items:
        try:
            json_encoder.encode(item)
        except _NOT_JSON:
            inner = f"{path}[{key!r:.60}]"
            # A value that contains itself has no innermost one.
            return inner if len(inner) > _MAX_PATH else _faulty_path(item, inner)
    return path


def _contract_error(settings: Settings, what: str) -> PluginContractError:
    return PluginContractError(f"the plugin of {settings.provider!r} {what}.", provider=settings.provider)


def _check_headers(headers: Mapping[str, str], settings: Settings) -> None:
    for name, value in headers.items():
        texts = isinstance(name, str) and isinstance(value, str)
        if not (texts and _HEADER_NAME.match(name) and _HEADER_VALUE.match(value)):
            # Without the value: it may be the key.
            raise _contract_error(
                settings, f"wants to send a header {name!r:.60} that HTTP does not allow, or that llmopt sets"
            )


def _url(path: str, settings: Settings) -> str:
    if "://" not in path.partition("?")[0]:
        url = (settings.base_url or _IN_PROCESS) + (path if path.startswith(("/", "?")) else f"/{path}")
    else:
        url = path
        _check_origin(url, settings)
    url = add_query(url, settings.query)
    if not _PATH.match(url):
        raise _contract_error(settings, "built a URL with characters that must be escaped")
    return url


def _check_origin(url: str, settings: Settings) -> None:
    """Refuse a URL outside the endpoint, because every request carries the endpoint's key."""
    try:
        origin = origin_of(url)
        own = origin_of(settings.base_url or _IN_PROCESS)
    except InvalidUrl as error:
        raise _contract_error(settings, f"built a URL that is not valid: {error}") from None
    if origin != own:
        raise _contract_error(
            settings, f"wants to send to {origin}, which is not the endpoint's origin {own}"
        )


# Compression of request bodies.
#
# Which servers decode gzip is not documented reliably, and they refuse it in different ways: with 415 (RFC 9110, 15.5.16)
# or, taking the body for broken JSON, with 400 or 422. So a refusal that may be due to compression is answered by sending
# the plain body once. If the server takes that, compression was the reason and ends for this endpoint.

MIN_COMPRESSED_BYTES: Final = 8 * 1024
MAX_BYTES_ON_LOOP: Final = 256 * 1024
"""Larger bodies are compressed in a thread: zlib releases the interpreter lock."""
_GZIP_LEVEL: Final = 1
"""English prose in JSON gets 2.9 times smaller for 7 ms per MiB; level 6 makes it 3.5 times for 29 ms."""
_GZIP_WBITS: Final = zlib.MAX_WBITS | 16
_TRUSTED_REFUSALS: Final = 8
_DRAIN_S: Final = 0.1
AnyResponse = TypeVar("AnyResponse", HttpResponse, ResponseStream)


@define(eq=False)
class CompressionSupport:
    """Decides from status codes whether a server accepts compressed request bodies.

    A server that has accepted one is trusted when it calls the next few requests bad, but not for ever: another proxy
    may stand in front of it by then.

    Attributes:
        enabled: whether request bodies are compressed. Never True again once it is False.
    """

    enabled: bool = True
    _trusted_refusals: int = 0

    def should_resend(self, status: int) -> bool:
        """Whether a compressed request that got this status is sent again with its plain body."""
        if 200 <= status < 300:
            self._trusted_refusals = _TRUSTED_REFUSALS if self.enabled else 0
        elif status in (400, 422) and self._trusted_refusals:
            self._trusted_refusals -= 1
        else:
            return status in (400, 415, 422)
        return False

    def record_resend(self, compressed_status: int, plain_status: int) -> bool:
        """Record both statuses of a request that was sent again; True if this is what disables compression."""
        # After a 415, an error about the content shows that the plain body was decoded.
        decoded = plain_status in (400, 404, 413, 422) and compressed_status == 415
        if not self.enabled or not (decoded or 200 <= plain_status < 300):
            return False
        self.enabled, self._trusted_refusals = False, 0
        return True


async def compress_body(body: bytes) -> bytes:
    """The body as gzip; equal bodies give equal bytes."""
    return _gzip(body) if len(body) <= MAX_BYTES_ON_LOOP else await run_in_thread(_gzip, body)


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _GZIP_LEVEL, _GZIP_WBITS)


@define(eq=False, kw_only=True)
class RequestCompressor:
    """Compresses the request bodies for one endpoint, and sends refused ones again without compression.

    Both sendings are one attempt and share its timeout; only the second response is seen by the policies.

    Args:
        config: of the endpoint.
        name: of the endpoint in events.
        metrics: counters of the endpoint.
        telemetry: gets the events.
        clock: measures what is left of the timeout.

    Attributes:
        support: whether the server accepts compressed bodies.
    """

    _config: Endpoint
    _name: str
    _metrics: EndpointMetrics
    _telemetry: Telemetry
    _clock: Clock
    support: CompressionSupport = field(factory=CompressionSupport)
    _headers: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    def compresses(self, encoded: TransportRequest) -> bool:
        """Whether to try: the body is large enough, and the plugin has not encoded it already."""
        body = encoded.body
        large = body is not None and len(body) >= MIN_COMPRESSED_BYTES and self.support.enabled
        return large and not any(name.lower() == "content-encoding" for name in encoded.headers)

    async def compress(
        self, encoded: TransportRequest, previous: TransportRequest | None
    ) -> TransportRequest:
        """The request with its body compressed, if that pays; ``previous`` is that of the attempt before."""
        body = encoded.body or b""
        if previous is not None and previous.uncompressed_body == body and previous.body is not None:
            compressed = previous.body
        else:
            compressed = await compress_body(body)
            self._telemetry.emit(RequestCompression, size=len(body), sent=len(compressed))
        if len(compressed) >= len(body):
            return encoded
        # Read once: an event loop in another thread may replace it meanwhile.
        plain, headers = self._headers
        if plain is not encoded.headers:
            # The connection pool recognizes equal headers by identity and then reuses their encoded form.
            headers = {**encoded.headers, "content-encoding": "gzip"}
            self._headers = (encoded.headers, headers)
        return evolve(encoded, headers=headers, body=compressed, uncompressed_body=body)

    async def send(
        self,
        send: Callable[[TransportRequest], Awaitable[AnyResponse]],
        request: TransportRequest,
        plain_body: bytes,
    ) -> AnyResponse:
        """The response to a compressed request, or that to the plain one if the compressed one may be unsupported."""
        started, counters = self._clock.now(), self._metrics.compression
        counters.compressed += 1
        counters.saved_sent += len(plain_body) - len(request.body or b"")
        refusal = await send(request)
        if not self.support.should_resend(refusal.status):
            return refusal
        if isinstance(refusal, ResponseStream):
            refusal.drain(_DRAIN_S)
        self._metrics.requests += 1
        counters.refused += 1
        counters.saved_sent -= len(plain_body)
        left = request.timeout
        if left is not None:
            left = max(0.0, left - (self._clock.now() - started))
        headers = {name: value for name, value in request.headers.items() if name != "content-encoding"}
        plain = evolve(request, headers=headers, body=plain_body, uncompressed_body=None, timeout=left)
        response = await send(plain)
        if self.support.record_resend(refusal.status, response.status):
            provider, endpoint, status = self._config.provider, self._name, refusal.status
            self._telemetry.emit(CompressionRefused, provider=provider, endpoint=endpoint, status=status)
        return response


# Signatures.


@frozen(eq=False)
class RequestSigner:
    """Signs each request as it is sent, by the plugin's hook `sign_request`."""

    _sign: Callable[[HttpRequest, float, Settings], Mapping[str, str]]
    _wall: Callable[[], float]

    def __call__(self, request: TransportRequest) -> TransportRequest:
        """The request with its signature."""
        settings = request.settings
        if settings is None:
            return request
        final = HttpRequest(
            method=request.method, path=request.url, headers=request.headers, content=request.body
        )
        signature = self._sign(final, self._wall(), settings)
        _check_headers(signature, settings)
        # In lower case, as the engine's own: a plugin's "Authorization" replaces its "authorization".
        headers = {name.lower(): value for name, value in (*request.headers.items(), *signature.items())}
        return evolve(request, headers=headers)

    async def send(
        self, send: Callable[[TransportRequest], Awaitable[AnyResponse]], request: TransportRequest
    ) -> AnyResponse:
        """Sign a request and send it."""
        # A signature covers a hash of the whole body.
        large = len(request.body or b"") > MAX_BYTES_ON_LOOP
        return await send(await run_in_thread(self, request) if large else self(request))
