"""One request as the wire sends it."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field


def _without_query(url: str) -> str:
    return repr(url.partition("?")[0])


def _names(headers: Mapping[str, str]) -> str:
    return repr(list(headers))


def _size(body: bytes | None) -> str:
    return "None" if body is None else f"<{len(body)} bytes>"


@define(kw_only=True, eq=False)
class WireRequest:
    """What to send, and the bounds within which an answer is wanted. Never changed; freezing it would double its price.

    Attributes:
        method: "GET" or "POST".
        url: absolute, http or https, without user information.
        headers: names and values; ``accept-encoding`` is added by the wire.
        body: the encoded body, None for none.
        unpacked: the body as it was before it was packed, None where it is not. Not sent, but by who sends the
            request once more.
        connect_timeout: seconds for name look-up, TCP and TLS together, None for no bound.
        pool_timeout: seconds to wait for a free connection, None for no bound.
        timeout: seconds for the whole attempt, from the first wait to the last byte of the answer; of a
            stream, to the end of the answer's head. None for no bound.
        idle: seconds without a byte of a stream after which a transport that nobody can interrupt gives up
            by itself; None for a long time. No bound for others: their idle clock is the caller's.
        max_body: most bytes that an answer may have once it is unpacked.
    """

    method: str
    url: str = field(repr=_without_query)
    headers: Mapping[str, str] = field(factory=dict, repr=_names)
    body: bytes | None = field(default=None, repr=_size)
    unpacked: bytes | None = field(default=None, repr=_size)
    connect_timeout: float | None = 10.0
    pool_timeout: float | None = 5.0
    timeout: float | None = 60.0
    idle: float | None = None
    max_body: int = 512 * 2**20
