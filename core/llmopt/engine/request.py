"""What an operation asks of the engine: a call, and how much it is."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic

import msgspec
from attrs import define, evolve, field

from llmopt.config.resolve import Endpoint
from llmopt.engine.responses import Parse, T
from llmopt.engine.telemetry import EndpointMetrics, Telemetry
from llmopt.errors import InvalidInput, PluginContractError
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.tasks import run_in_thread
from llmopt.transport.request import TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.values.calls import Call, CatalogCall, ChatCall, Settings
from llmopt.values.embeddings import Usage
from llmopt.values.events import RequestCompression
from llmopt.values.http import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from llmopt.transport.stream import RequestSender


def _no_usage(_: object) -> Usage | None:
    return None


@define(kw_only=True, eq=False)
class Request(Generic[T]):
    """One request, however often it has to be sent. Never changed; freezing it would double its price.

    Attributes:
        call: what is asked for.
        parse: reads a 2xx answer.
        deadline: of the caller's whole call.
        max_body: most bytes of an unpacked answer.
        items: texts in it.
        tokens: estimate of its tokens, what it costs of a rate limit.
        fill: how much of the largest allowed request it is, 0 to 1; decides its time-out.
        wait_when_open: whether to wait while all endpoints are given a rest.
        suspect: whether it is part of a request that failed for what may be the fault of one text, so
            that failing again in that way is no surprise and not worth a retry.
        usage_of: the usage that an answer reports, None when it reports none.
    """

    call: Call
    parse: Parse[T] = field(repr=False)
    deadline: Deadline
    max_body: int
    items: int = 0
    tokens: int = 0
    fill: float = 0.0
    wait_when_open: bool = False
    suspect: bool = False
    usage_of: Callable[[T], Usage | None] = field(default=_no_usage, repr=False)


@define(kw_only=True, eq=False)
class StreamRequest(Request[Any]):
    """A request for a stream. ``parse`` reads an answer that comes in one piece all the same.

    Attributes:
        call: what is asked for, with ``stream``.
        prompt_tokens: estimate of those of ``tokens`` that are in the question.
        buffer_size: most events that are parsed together.
    """

    call: ChatCall
    prompt_tokens: int = 0
    buffer_size: int = 100


# From what a plugin says to the bytes that go out, checked on the way.

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_IN_PROCESS: Final = "http://in-process"
_PATH: Final = re.compile(r"[\x21-\x7e]*\Z")
_DEFAULT_HEADERS: Final = {"accept": "application/json"}
_MAX_CHECKED: Final = 64
json_encoder: Final = msgspec.json.Encoder()


@define(kw_only=True, eq=False)
class EncodedRequest:
    """A request ready for the transport. Nothing of it is ever changed; freezing it would double its price.

    Attributes:
        unpacked: the body as it was before it was packed, None where it is not.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    unpacked: bytes | None = field(default=None, repr=False)


class RequestEncoder:
    """Encodes the requests of one endpoint. Their addresses and headers are checked once: they repeat.

    Args:
        compression: whether answers may come packed.
    """

    def __init__(self, *, compression: bool = True) -> None:
        # What may come packed, and how, is for the transport to say.
        self._default_headers: Final = (
            _DEFAULT_HEADERS if compression else {**_DEFAULT_HEADERS, "accept-encoding": "identity"}
        )
        self._checked: Final[dict[tuple[object, ...], tuple[str, Mapping[str, str]]]] = {}

    def __call__(self, request: HttpRequest, settings: Settings) -> EncodedRequest:
        """Encode a plugin's request.

        Raises:
            PluginContractError: the URL leaves the endpoint's origin, or a header cannot be sent.
            InvalidInput: the body holds something that JSON does not have.
        """
        body = None if request.json is None else _encode_json(request.json)
        key = (settings.base_url, request.path, body is None, *request.headers.items())
        try:
            checked = self._checked.get(key)
        except TypeError:
            # Something in it is no text, which is said below.
            checked = None
        if checked is None:
            checked = _checked(request, settings, self._default_headers)
            # A path with a cursor, a token that changes by the hour.
            if len(self._checked) >= _MAX_CHECKED:
                self._checked.clear()
            self._checked[key] = checked
        url, headers = checked
        return EncodedRequest(method=request.method, url=url, headers=headers, body=body)


def encode_request(request: HttpRequest, settings: Settings) -> EncodedRequest:
    """As a `RequestEncoder`, for once."""
    return RequestEncoder()(request, settings)


def _checked(
    request: HttpRequest, settings: Settings, defaults: Mapping[str, str]
) -> tuple[str, Mapping[str, str]]:
    headers = {**defaults, **request.headers}
    if request.json is not None:
        headers["content-type"] = "application/json"
    _check_headers(headers, settings)
    return _url(request.path, settings), headers


def add_if_none_match(request: HttpRequest, call: Call) -> HttpRequest:
    """The request, asking for an answer only if there is a new one, where the call knows an old one."""
    if not isinstance(call, CatalogCall) or call.etag is None:
        return request
    return evolve(request, headers={**request.headers, "if-none-match": call.etag})


def _encode_json(value: object) -> bytes:
    try:
        return json_encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        # Its message names the type that has no JSON, and no value.
        raise InvalidInput(
            f"the request cannot be written as JSON: {type(error).__name__}; check `extra`."
        ) from None


def _check_headers(headers: Mapping[str, str], settings: Settings) -> None:
    for name, value in headers.items():
        if not (isinstance(value, str) and _HEADER_NAME.match(name) and _HEADER_VALUE.match(value)):
            # The value is not shown: it may be the key.
            raise PluginContractError(
                f"the plugin of {settings.provider!r} wants to send a header {name!r:.60} that HTTP does not allow.",
                provider=settings.provider,
            )


def _url(path: str, settings: Settings) -> str:
    if "://" not in path.partition("?")[0]:
        url = (settings.base_url or _IN_PROCESS) + (path if path.startswith(("/", "?")) else f"/{path}")
    else:
        url = path
        if origin(url) != origin(settings.base_url):
            raise PluginContractError(
                f"the plugin of {settings.provider!r} wants to send to {origin(url)}, which is not the "
                f"endpoint's origin {origin(settings.base_url)}.",
                provider=settings.provider,
            )
    if not _PATH.match(url):
        raise PluginContractError(
            f"the plugin of {settings.provider!r} built a URL with characters that must be escaped.",
            provider=settings.provider,
        )
    return url


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    return f"{scheme.lower()}://{host.lower()}"


# Whether an endpoint is sent packed request bodies.
#
# A server that does not unpack them answers 415, or takes them for bad JSON and says 400 or 422 in the words of its
# parser ("invalid character", "error parsing the body", "unsupported encoding"). No words are looked for: what
# may have been refused for being packed is sent once more as it is, and if the server then takes it, packing was the
# reason. If it says something else that has nothing to do with packing (a rate limit, a refused key, an outage), nothing is
# concluded. A server that has taken packed bodies is believed when it calls a request bad, but not for
# ever: what stands in front of it may change.

_UNSUPPORTED: Final = 415
_BAD: Final = (400, 422)
_READ: Final = (400, 404, 413, 422)
_MOST: Final = 8
"""Refusals in a row, after a packed request was taken, that are believed to be for something else."""


class PackingTrust:
    """What is known of one endpoint.

    Attributes:
        on: whether it is sent packed bodies; once off, for ever.
    """

    __slots__ = ("_belief", "on")

    def __init__(self) -> None:
        self.on = True
        self._belief = 0

    def doubts(self, status: int) -> bool:
        """A packed request was answered with this status; whether it is to be sent again as it was before packing."""
        if 200 <= status < 300:
            self._belief = _MOST if self.on else 0
        elif status in _BAD and self._belief:
            self._belief -= 1
        else:
            return status == _UNSUPPORTED or status in _BAD
        return False

    def compare(self, packed: int, plain: int) -> bool:
        """The same request had one status packed and one as it was; whether that ends packing, now and here."""
        # A body that is refused as bad once it is read was refused before for how it came, if that is what 415 said.
        read = 200 <= plain < 300 or (packed == _UNSUPPORTED and plain in _READ)
        if not self.on or not read:
            return False
        self.on, self._belief = False, 0
        return True


# Packing a request's body, and when that is worth it.

LEAST: Final = 8 * 1024
"""Bytes from which on a body is worth packing."""
_LEVEL: Final = 1
"""English prose in JSON: 2.9 times smaller for 7 ms per MiB; level 6 makes it 3.5 times for 29 ms."""
_GZIP: Final = zlib.MAX_WBITS | 16
_MAX_ON_THE_LOOP: Final = 256 * 1024


async def pack(body: bytes) -> bytes:
    """A body as gzip, the same bytes each time. A long one is packed beside the event loop, which zlib leaves free."""
    if len(body) <= _MAX_ON_THE_LOOP:
        return _pack(body)
    return await run_in_thread(_pack, body)


def _pack(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP)


# Packed request bodies of one endpoint: made once per request, taken back where the server does not understand them.

ENCODING: Final = "content-encoding"


class Packing:
    """Packs what goes to one endpoint, as long as it takes that.

    Args:
        endpoint: as configured.
        name: what it is called in events.
        counts: of what was done there.
        telemetry: told of what happens.
    """

    def __init__(
        self, endpoint: Endpoint, name: str, *, counts: EndpointMetrics, telemetry: Telemetry
    ) -> None:
        self._provider: Final = endpoint.provider
        self._name: Final = name
        self._counts: Final = counts
        self._telemetry: Final = telemetry
        self._trust: Final = PackingTrust()
        self._headers: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    @property
    def on(self) -> bool:
        """Whether bodies go out packed."""
        return self._trust.on

    async def pack(
        self, encoded: EncodedRequest, before: EncodedRequest | None, model: str
    ) -> EncodedRequest:
        """The request with its body packed, if that is long enough.

        Args:
            encoded: the request.
            before: as it went out in an attempt before; what was packed for that is not packed again.
            model: of its call.
        """
        body = encoded.body
        if body is None or len(body) < LEAST or not self._trust.on or _encoded(encoded):
            return encoded
        if before is not None and before.unpacked == body and before.body is not None:
            packed = before.body
        else:
            packed = await pack(body)
            self._tell(model, len(body), len(packed))
        if len(packed) >= len(body):
            return encoded
        if self._headers[0] is not encoded.headers:
            # The same object for the same headers, so that their head is not written anew for each request.
            self._headers = (encoded.headers, {**encoded.headers, ENCODING: "gzip"})
        return evolve(encoded, headers=self._headers[1], body=packed, unpacked=body)

    def _tell(self, model: str, size: int, sent: int) -> None:
        if self._telemetry.enabled:
            self._telemetry.emit(
                RequestCompression(
                    provider=self._provider, model=model, endpoint=self._name, size=size, sent=sent
                )
            )

    def sending(self, size: int, sent: int) -> None:
        """A body of ``size`` bytes goes out as ``sent`` bytes."""
        self._counts.compressed += 1
        self._counts.saved_sent += size - sent

    def doubts(self, status: int, size: int) -> bool:
        """Whether what was answered so is sent again as it was before packing: a body of ``size`` bytes."""
        if not self._trust.doubts(status):
            return False
        self._counts.requests += 1
        self._counts.compression_refused += 1
        self._counts.saved_sent -= size
        return True

    def compare(self, packed: int, plain: int) -> None:
        """It had one status packed and one as it was."""
        if self._trust.compare(packed, plain):
            self._telemetry.compression_refused(self._provider, self._name, packed)


def _encoded(encoded: EncodedRequest) -> bool:
    return any(name.lower() == ENCODING for name in encoded.headers)


# A way out on which a packed body that is refused is followed by the same unpacked.

_DRAIN_S: Final = 0.1


class CompressionFallback:
    """A transport that sends again, unpacked and at once, what the server may have refused for being packed.

    Both sendings are one attempt and have its time-out together. Nobody else hears of the first.

    Args:
        transport: sends the requests.
        packing: decides.
        clock: the time.
    """

    def __init__(self, transport: RequestSender, packing: Packing, clock: Clock) -> None:
        self._transport: Final = transport
        self._clock: Final = clock
        self._packing: Final = packing

    async def send(self, request: TransportRequest) -> HttpResponse:
        """Like `RequestSender`."""
        unpacked = request.uncompressed_body
        if unpacked is None:
            return await self._transport.send(request)
        started = self._begin(request, unpacked)
        answer = await self._transport.send(request)
        if not self._packing.doubts(answer.status, len(unpacked)):
            return answer
        again = await self._transport.send(self._plain(request, unpacked, started))
        self._packing.compare(answer.status, again.status)
        return again

    async def open(self, request: TransportRequest) -> ResponseStream:
        """Like `RequestSender`."""
        unpacked = request.uncompressed_body
        if unpacked is None:
            return await self._transport.open(request)
        started = self._begin(request, unpacked)
        stream = await self._transport.open(request)
        if not self._packing.doubts(stream.status, len(unpacked)):
            return stream
        stream.drain(_DRAIN_S)
        again = await self._transport.open(self._plain(request, unpacked, started))
        self._packing.compare(stream.status, again.status)
        return again

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()

    def _begin(self, request: TransportRequest, unpacked: bytes) -> float:
        self._packing.sending(len(unpacked), len(request.body or b""))
        return self._clock.now()

    def _plain(self, request: TransportRequest, unpacked: bytes, started: float) -> TransportRequest:
        headers = {name: value for name, value in request.headers.items() if name != ENCODING}
        left = request.timeout
        if left is not None:
            left = max(0.0, left - (self._clock.now() - started))
        return evolve(request, headers=headers, body=unpacked, uncompressed_body=None, timeout=left)
