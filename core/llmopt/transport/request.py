"""The request that a transport sends, and the record of how far an attempt has got.

No I/O and no clock. A `RequestState` belongs to one attempt, and the transport changes it while the attempt runs, on
one event loop and without a lock. What is shared never changes: attempts on reused connections share one `AttemptInfo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import define, field

from llmopt.errors import Sent
from llmopt.values.http import AttemptInfo, Phase
from llmopt.values.secret import repr_body, repr_names

if TYPE_CHECKING:
    from llmopt.transport.urls import Proxy
    from llmopt.values.calls import Settings


def _without_query(url: str) -> str:
    return repr(url.partition("?")[0])


@define(kw_only=True, eq=False)
class TransportRequest:
    """A request and its timeouts.

    The engine encodes it, then sets the timeouts; a transport never changes it. A frozen class would take twice as long
    to make.

    Attributes:
        method: "GET" or "POST".
        url: absolute, http or https, without user information.
        headers: names and values; ``accept-encoding`` is added by the transport.
        body: the encoded body, None for none.
        uncompressed_body: the body before compression, None if it was not compressed. It is sent only if the server
            refuses the compressed one.
        connect_timeout: seconds for name resolution, TCP and TLS together, None for no limit.
        pool_timeout: seconds to wait for a free connection, None for no limit.
        timeout: seconds for the whole attempt, from the first wait to the last byte of the response; for a
            stream, to the end of the response's head. None for no limit.
        idle_timeout: seconds without a byte of a stream after which an httpx transport that runs in its own task
            gives up; None for a long time. Not used otherwise: the caller has its own timeout.
        max_body: maximum size of the response in bytes, after decompression.
        settings: of the endpoint, for a plugin that signs requests.
    """

    method: str
    # A query may hold a key, headers do hold one, and bodies are private: none of them is shown.
    url: str = field(repr=_without_query)
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    body: bytes | None = field(default=None, repr=repr_body)
    uncompressed_body: bytes | None = field(default=None, repr=repr_body)
    connect_timeout: float | None = 10.0
    pool_timeout: float | None = 5.0
    timeout: float | None = 60.0
    idle_timeout: float | None = None
    # 2,048 vectors (the largest batch of OpenAI) of 4,096 numbers take up to 200 MB as JSON.
    max_body: int = 512 * 2**20
    settings: Settings | None = field(default=None, repr=False)


_COMMON_INFO: Final = AttemptInfo(phase="done", reused=True, sent="yes")


@define(eq=False)
class RequestState:
    """How far one attempt has got: updated while it runs, read when it ends to build its result or its error.

    Attributes:
        request: the request that is sent.
        origin: the origin it is sent to.
        proxy: the proxy it goes through, None for a direct connection.
        phase: the last phase entered.
        reused: whether the connection had carried a request before.
        response_started: whether any byte of a response was received.
        connection_error: the error that the connection was lost with, None for a clean end.
        status: status of the response, None before its head was read.
        queued_s: seconds spent waiting for a pooled connection.
    """

    request: Final[TransportRequest]
    origin: Final[str]
    proxy: Final[Proxy | None] = None
    phase: Phase = "pool"
    reused: bool = False
    response_started: bool = False
    connection_error: BaseException | None = None
    status: int | None = None
    queued_s: float = 0.0

    @property
    def connecting(self) -> bool:
        """Whether there is no connection yet."""
        return self.phase in ("pool", "connect")

    @property
    def sent(self) -> Sent:
        """Whether the request left this process: no, maybe, or yes because a response began."""
        if self.connecting:
            return "no"
        return "maybe" if self.status is None else "yes"

    def info(self, *, compressed_size: int | None = None) -> AttemptInfo:
        """A snapshot; ``compressed_size`` is the received size of a compressed body, None for an uncompressed one."""
        # One shared instance for the common case: making one per request costs 1 µs of about 60.
        if self.phase == "done" and self.reused and not self.queued_s and compressed_size is None:
            return _COMMON_INFO
        return AttemptInfo(
            phase=self.phase,
            reused=self.reused,
            sent=self.sent,
            queued_s=self.queued_s,
            compressed_size=compressed_size,
        )
