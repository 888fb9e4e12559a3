"""The common part of the emulators: a real socket, a record of requests, scripted answers, rate budgets, vectors.

Rules that let a test predict an answer:

* a text costs one token per four characters, rounded up, and at least one; a list of token ids costs its length;
* the vector of an input depends on that input alone (``vector_for``): not on provider, batch or position;
* chat repeats the last message: ``You said: <text>``, sent word by word, each word one completion token.
"""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, TypedDict, TypeGuard, TypeVar

import msgspec
import numpy as np
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from numpy.typing import NDArray

JsonObject: TypeAlias = dict[str, Any]
Headers: TypeAlias = Mapping[str, str]
Item: TypeAlias = str | list[int]
"""One input to embed: a text, or token ids."""

CREATED = 1_700_000_000
"""The one moment (unix seconds) at which everything here was created: answers do not depend on the clock."""


# -- inputs: tokens, vectors ------------------------------------------------------------------------------


def token_count(item: Item) -> int:
    """Estimate the tokens of an input: characters / 4 rounded up, at least 1; for token ids their number."""
    return len(item) if isinstance(item, list) else max(1, -(-len(item) // 4))


def cut(item: Item, tokens: int) -> Item:
    """Return the first *tokens* tokens of an input, as a truncating server does."""
    return item[:tokens] if isinstance(item, list) else item[: 4 * tokens]


def vector_for(item: Item, dimensions: int) -> NDArray[np.float32]:
    """Return the unit-length float32 vector that belongs to this input and to no other.

    A shorter vector is the renormalised head of a longer one, as with Matryoshka models.
    """
    text = item if isinstance(item, str) else f"\0tokens {item}"
    stream = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    numbers = np.frombuffer(stream, dtype="<i4").astype(np.float64)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def encoded(vector: NDArray[Any], encoding_format: str) -> list[float] | str:
    """Write a vector as a JSON list, or as base64 of its little-endian bytes."""
    if encoding_format != "base64":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype(vector.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def embedding_rows(vectors: Sequence[NDArray[Any]], encoding_format: str) -> list[JsonObject]:
    """Write vectors as the ``data`` of an OpenAI-shaped embeddings reply."""
    return [
        {"object": "embedding", "index": index, "embedding": encoded(vector, encoding_format)}
        for index, vector in enumerate(vectors)
    ]


# -- chat ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the emulated model says: words, why it stopped, and what it cost."""

    pieces: list[str]
    finish_reason: str
    prompt_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, len(self.pieces)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a chat message, whose content may be a string or a list of typed parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def is_conversation(value: Any) -> TypeGuard[list[JsonObject]]:
    """Return whether a value is a list of messages, not empty, with content that ``message_text`` can read."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    content = value.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    return isinstance(parts, list) and all(
        isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in parts
    )


def reply_to(messages: Sequence[Mapping[str, Any]], max_tokens: int | None = None) -> Reply:
    """Answer a conversation by repeating its last message, at most *max_tokens* words of it."""
    words = f"You said: {message_text(messages[-1])}".split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    kept = pieces if max_tokens is None else pieces[:max_tokens]
    return Reply(
        pieces=kept,
        finish_reason="stop" if len(kept) == len(pieces) else "length",
        prompt_tokens=sum(token_count(message_text(message)) for message in messages),
    )


# -- answers ------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """An answer other than success, raised by a handler wherever it finds the fault."""

    def __init__(self, status: int, body: Any = None, headers: Headers | None = None) -> None:
        super().__init__(status, body)
        self.status, self.body, self.headers = status, body, dict(headers or {})


def json_bytes(value: Any) -> bytes:
    """Encode compactly; a lone surrogate, echoed from a request, is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def answer(status: int, body: Any = None, headers: Headers | None = None) -> web.Response:
    """Make a response of a JSON value, of plain text (str), of raw bytes, or of nothing (None)."""
    if body is None or isinstance(body, bytes):
        return web.Response(status=status, body=body, headers=headers)
    text = isinstance(body, str)
    kind = "text/plain; charset=utf-8" if text else "application/json"
    content = body.encode(errors="replace") if text else json_bytes(body)
    all_headers = CIMultiDict({"Content-Type": kind})
    all_headers.update(headers or {})
    return web.Response(status=status, body=content, headers=all_headers)


def sse(event: JsonObject) -> bytes:
    """Write one server-sent event."""
    return b"data: " + json_bytes(event) + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"


# -- rate limits ----------------------------------------------------------------------------------------


class Budget:
    """A number of units a minute: refilled steadily, or all at once when the clock's minute turns.

    Args:
        limit: units per minute.
        clock: seconds, from any origin.
        steady: refill in proportion to the time passed, instead of at the minute boundary.
    """

    def __init__(self, limit: int, clock: Callable[[], float], *, steady: bool) -> None:
        self.limit, self._clock, self._steady = limit, clock, steady
        self._level, self._seen = float(limit), clock()

    def now(self) -> float:
        """The time by this budget's clock."""
        return self._clock()

    @property
    def remaining(self) -> int:
        self._refill()
        return math.floor(self._level + 1e-9)

    @property
    def reset(self) -> float:
        """Seconds until the whole budget is there again."""
        return self.wait_for(self.limit)

    def wait_for(self, amount: int) -> float:
        """Return the seconds until *amount* can be spent: 0 if now, infinity if never."""
        self._refill()
        missing = amount - self._level
        if missing <= 1e-9:
            return 0.0
        if amount > self.limit:
            return math.inf
        return missing * 60 / self.limit if self._steady else 60 - self._clock() % 60

    def spend(self, amount: int) -> None:
        self._refill()
        self._level -= amount

    def _refill(self) -> None:
        now = self._clock()
        if self._steady:
            self._level = min(float(self.limit), self._level + (now - self._seen) * self.limit / 60)
        elif now // 60 != self._seen // 60:
            self._level = float(self.limit)
        self._seen = now


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """Which budget cannot pay for a request now, and when it can (``wait`` is infinite for never)."""

    kind: str
    limit: int
    used: int
    requested: int
    wait: float


# -- the server -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it came in; ``json`` is None when the body is no JSON."""

    method: str
    path: str
    query: dict[str, str]
    headers: CIMultiDictProxy[str]
    body: bytes = field(repr=False)
    json: Any
    request: web.Request = field(repr=False)

    @property
    def bearer(self) -> str | None:
        """The token of an ``Authorization: Bearer`` header."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None


Shape: TypeAlias = Mapping[str, type]
"""The JSON types of a body's keys; null fits each, a key may be missing."""


def fits(value: Any, kind: type) -> bool:
    """Return whether a value has the JSON type that a Python type stands for, or is null."""
    return value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))


Handler: TypeAlias = Callable[[Received], Awaitable[web.StreamResponse]]
Route: TypeAlias = tuple[str, str, Handler]
"""Method, aiohttp path pattern, handler."""


class Common(TypedDict, total=False):
    """Options that every emulator takes; see ``Emulator``."""

    key: str | None
    rpm: int | None
    tpm: int | None
    latency: float
    clock: Callable[[], float]
    accepts_gzip: bool


class Emulator:
    """A provider's server on 127.0.0.1, for ``async with`` or, in a thread, ``with x.in_thread()``.

    Args:
        key: the API key asked for; None means the provider's default, an empty string asks for none.
        rpm: requests per minute; None sets no limit and sends no rate headers for requests.
        tpm: tokens per minute, likewise.
        latency: seconds that each piece of work takes (asyncio.sleep).
        clock: seconds for the rate budgets.
        accepts_gzip: decode gzip request bodies; otherwise they reach the JSON parser as they are.

    Attributes:
        requests: every request received so far, oldest first.
        in_flight, most_in_flight: requests being answered now, and the most there were at a time.
        break_stream_after: end each chat stream after this number of pieces, in the way this provider fails.
        rows_reversed: send the rows of OpenAI-shaped embedding replies in reverse order, as ``index`` says.
    """

    default_key: ClassVar[str] = "test-key"
    steady_limits: ClassVar[bool] = True
    base_path: ClassVar[str] = "/v1"

    def __init__(
        self,
        *,
        key: str | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        latency: float = 0.0,
        clock: Callable[[], float] = time.time,
        accepts_gzip: bool = False,
    ) -> None:
        self.key = self.default_key if key is None else key
        self.latency, self.accepts_gzip = latency, accepts_gzip
        self.request_budget = Budget(rpm, clock, steady=self.steady_limits) if rpm else None
        self.token_budget = Budget(tpm, clock, steady=self.steady_limits) if tpm else None
        self.requests: list[Received] = []
        self.in_flight = self.most_in_flight = 0
        self.break_stream_after: int | None = None
        self.rows_reversed = False
        self._script: list[tuple[int, Any, Headers | None]] = []
        self._runner: web.AppRunner | None = None
        self._port: int | None = None

    # What a provider's file adds.

    def routes(self) -> Iterable[Route]:
        """List the paths that are served."""
        raise NotImplementedError

    def authorise(self, received: Received) -> None:
        """Raise a ``Refusal`` unless the request may pass."""

    def reply_headers(self, received: Received, status: int) -> Headers:
        """Return the headers that this provider adds to its own answers."""
        return {}

    def unreadable(self, received: Received) -> Refusal:
        """Refuse a body that is no JSON object."""
        raise NotImplementedError

    def mistyped(self, received: Received, key: str) -> Refusal:
        """Refuse a body in which a key has a value of the wrong JSON type."""
        raise NotImplementedError

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        """Refuse a request that the budgets cannot pay for."""
        raise NotImplementedError

    async def no_route(self, received: Received) -> web.StreamResponse:
        """Answer a path or method that is not served."""
        return answer(404)

    # What handlers use.

    def body_of(self, received: Received, shape: Shape) -> JsonObject:
        """Return the JSON object in the body, its keys of the right types, or refuse."""
        if not isinstance(received.json, dict):
            raise self.unreadable(received)
        for key, kind in shape.items():
            if not fits(received.json.get(key), kind):
                raise self.mistyped(received, key)
        return received.json

    def charge(self, received: Received, model: str, tokens: int) -> None:
        """Pay for one request of `tokens` tokens, or refuse: both budgets or neither."""
        asked = [("requests", self.request_budget, 1), ("tokens", self.token_budget, tokens)]
        for kind, budget, amount in asked:
            if budget is not None and (wait := budget.wait_for(amount)) > 0:
                used = budget.limit - budget.remaining
                raise self.over_limit(
                    received,
                    model,
                    Shortage(kind=kind, limit=budget.limit, used=used, requested=amount, wait=wait),
                )
        for _, budget, amount in asked:
            if budget is not None:
                budget.spend(amount)

    async def work(self) -> None:
        """Take as long as the work takes."""
        if self.latency:
            await asyncio.sleep(self.latency)

    def rows(self, vectors: Sequence[NDArray[Any]], encoding_format: str) -> list[JsonObject]:
        """Write the ``data`` of an OpenAI-shaped reply."""
        rows = embedding_rows(vectors, encoding_format)
        return rows[::-1] if self.rows_reversed else rows

    async def stream(self, received: Received, lines: Iterable[bytes], kind: str) -> web.StreamResponse:
        """Send lines one by one, chunked."""
        headers = {**self.reply_headers(received, 200), "Content-Type": kind}
        response = web.StreamResponse(headers=headers)
        await response.prepare(received.request)
        for line in lines:
            await response.write(line)
        await response.write_eof()
        return response

    # What tests use.

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        if self._port is None:
            raise RuntimeError(f"{type(self).__name__} is not running")
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What a client is given as its base URL."""
        return self.origin + self.base_path

    def fail_next(
        self, status: int, body: Any = None, headers: Headers | None = None, times: int = 1
    ) -> None:
        """Answer the next requests with this, before authentication and everything else. May be called again to queue more."""
        self._script.extend([(status, body, headers)] * times)

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            auto_decompress=False,  # gzip request bodies are decoded only with `accepts_gzip`
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        runner, self._runner, self._port = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def in_thread(self) -> contextlib.AbstractContextManager[Self]:
        """Run on an event loop in another thread, for synchronous tests."""
        return serve_in_thread(self)

    def __repr__(self) -> str:
        where = "stopped" if self._port is None else self.origin
        return f"<{type(self).__name__} {where}, {len(self.requests)} requests>"

    # The path of one request.

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=2**30)
        for method, path, handler in [*self.routes(), ("*", "/{path:.*}", self.no_route)]:
            application.router.add_route(method, path, self._bound(handler))
        return application

    def _bound(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            received = await self._receive(request)
            self.requests.append(received)
            if self._script:
                return answer(*self._script.pop(0))
            async with self._counted():
                return await self._answered(handler, received)

        return serve

    async def _answered(self, handler: Handler, received: Received) -> web.StreamResponse:
        try:
            self.authorise(received)
            response = await handler(received)
        except Refusal as refusal:
            response = answer(refusal.status, refusal.body, refusal.headers)
        if not response.prepared:
            for name, value in self.reply_headers(received, response.status).items():
                response.headers.setdefault(name, value)
        return response

    @contextlib.asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    async def _receive(self, request: web.Request) -> Received:
        body = await request.read()
        if self.accepts_gzip and request.headers.get("Content-Encoding", "").lower() == "gzip":
            body = gzip.decompress(body)
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        return Received(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers=request.headers,
            body=body,
            json=value,
            request=request,
        )


_E = TypeVar("_E", bound=Emulator)


@contextlib.contextmanager
def serve_in_thread(emulator: _E) -> Iterator[_E]:
    """Run an emulator on an event loop in a daemon thread until the block is left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=type(emulator).__name__, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(emulator.start(), loop).result(timeout=10)
        try:
            yield emulator
        finally:
            asyncio.run_coroutine_threadsafe(emulator.stop(), loop).result(timeout=10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
